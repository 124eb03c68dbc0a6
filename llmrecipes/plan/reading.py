"""The plan's command line: its own options, and the YAML and keys of the stage to plan."""

import re
import sys
from dataclasses import fields
from pathlib import Path

from llmrecipes.config import InputError, one_line
from llmrecipes.keys import recipe_keys
from llmrecipes.keys.settings import Settings
from llmrecipes.parsing import collect, read_argv
from llmrecipes.preflight import contradictions, model_folders
from llmrecipes.preflight.precedence import let_command_line_win


def split_argv(argv: list[str], own_type) -> tuple[list[str], list[str]]:
    """(the words of options of the dataclass `own_type` and of --help; the words of all other options)."""
    names = {"help", "print_config", *(field.name for field in fields(own_type))}
    own, others, current = [], [], []
    for word in argv:
        if re.match(r"--[a-zA-Z]|-h$", word):
            name = "help" if word == "-h" else word[2:].partition("=")[0].replace("-", "_")
            current = own if name.removeprefix("no_") in names else others
        current = current if argv[0].startswith("-") else others
        current.append(word)
    return own, others


def read_settings(words: list[str], stage: str | None, recipes: Path) -> tuple[Settings, str | None]:
    """(the checked settings of the stage, its YAML) from the options in `words`; imports nothing heavy.

    Raises:
        InputError: everything wrong with the YAML and the keys; or the YAML fits no stage.
    """
    options = read_argv(words)
    if not options.config and not stage:
        raise InputError("command line: --config is missing; give the YAML to plan")
    name = stage or Path(options.config).stem.split("-")[0]
    recipe = recipes / f"{name}.py"
    if not recipe.is_file():
        raise InputError(f"stage: {name} is not a recipe; say whose YAML {options.config} is, e.g. --stage sft")
    settings, _, problems = collect(options, recipe_keys(recipe))
    for remark in let_command_line_win(settings):  # as in the run
        print(f"warning: {one_line(remark)}", file=sys.stderr)
    problems += contradictions(settings)
    problems += settings.lines(model_folders.models(settings, weights=False))
    if problems:
        raise InputError(*problems)
    return settings, options.config
