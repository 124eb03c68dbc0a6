"""Command lines of commands that are no recipes: benchmarks, `python -m llmrecipes.migrate` and the like."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from llmrecipes.config import one_line


def result_file(name: str) -> Path:
    """The `type` of an option that names a file for results: that it cannot be written is found before they are measured."""
    path = Path(name)
    is_new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be written ({error.strerror})") from None
    if is_new:
        path.unlink()
    return path


def names_of(value: str, known) -> list[str]:
    """The names in `value`, separated by commas, each once; ValueError if there is none, or one that is not `known`."""
    names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise ValueError(f"names none of {', '.join(known)}")
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{', '.join(unknown)} is not one of {', '.join(known)}")
    return names


class OptionParser(argparse.ArgumentParser):
    """argparse as strict as the recipes: an option given twice is refused, names are not completed, and a mistake is one
    line and exit code 2."""

    def __init__(self, **keys):
        super().__init__(allow_abbrev=False, **keys)

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        given = Counter(word.partition("=")[0] for word in words if re.match("--[a-zA-Z]", word))
        for name, count in given.items():
            if count > 1:
                self.error(f"{name} is given twice; give it once")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        print(f"error: command line: {one_line(message)} (see --help)", file=sys.stderr)
        self.exit(2)
