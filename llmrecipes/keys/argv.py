"""A command line's words, before anything is known of the keys that they name."""

import os
import re
from dataclasses import dataclass

from llmrecipes.config import InputError
from llmrecipes.keys.settings import COMMAND_LINE
from llmrecipes.keys.values import shown

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"  # what editors and web pages make of - and --
DASHED = re.compile(rf"-?[{DASHES}]+[a-zA-Z_]\w*(=|$)")


@dataclass
class Options:
    """argv, read once: key -> list of words for each `--key value`, and the options that are not keys."""

    given: dict[str, list[str]]
    config: str | None = None
    help: list[str] | None = None
    print_config: bool = False


def read_argv(argv: list[str]) -> Options:
    """Splits argv into options: `--key=value`, `--key value ...` and `--key` alone. InputError for anything else, and for an
    option that is given twice, also as `--key` and `--no_key`."""
    options, i, seen = Options({}), 0, set()
    while i < len(argv):
        word = "--help" if argv[i] == "-h" else argv[i]
        if not re.match(r"--[a-zA-Z]", word):
            plain = ", with two plain -" if DASHED.match(word) else ""
            raise InputError(f"{COMMAND_LINE}: {shown(word)} belongs to no option; write --key value{plain}")
        key, has_value, value = word[2:].partition("=")
        key, words = key.replace("-", "_"), [value] if has_value else []
        i += 1
        while not has_value and i < len(argv) and not re.match(r"--[a-zA-Z]", argv[i]) and argv[i] != "-h":
            if DASHED.match(argv[i]) or words and re.match(r"-[a-zA-Z_]{2,}(=|$)", argv[i]):
                meant = argv[i].lstrip(f"-{DASHES}").partition("=")[0]
                raise InputError(f"{COMMAND_LINE}: {shown(argv[i])} belongs to no option; write --{meant}, with two plain -")
            words.append(argv[i])
            i += 1
        name = key if words else key.removeprefix("no_")
        if name in seen:
            raise InputError(f"{COMMAND_LINE}: --{name} is given twice; give it once (a list as --{name} A B)")
        seen.add(name)
        if key == "config":
            if len(words) > 1:
                raise InputError(f"{COMMAND_LINE}: --config takes one file; {shown(words[1])} belongs to no option")
            if not words or not words[0]:
                raise InputError(f"{COMMAND_LINE}: --config needs a file; write --config FILE.yaml")
            options.config = os.path.expanduser(words[0])
        elif key == "help":
            options.help = [*(options.help or []), *words]
        elif key == "print_config":
            options.print_config = True
        else:
            options.given[key] = words
    return options
