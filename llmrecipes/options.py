"""Command lines of commands that are no recipes: benchmarks, `python -m llmrecipes.migrate` and the like."""

import argparse
import re
import sys
from collections import Counter

from llmrecipes.config import one_line


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
