"""Strict reading of YAML: whatever YAML would misread or drop becomes a one-line error.

Refuses duplicate keys, keys that are not text (`on:`, `1:`), aliases inside themselves, types that no config has
(`!!binary`, `!!set`), and numbers that YAML 1.1 reads in base 8 (010) or 60 (20:00). Merge keys (`<<`) work;
dates stay text; 1e-4 is a number, as in YAML 1.2.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from llmrecipes.config import InputError
from llmrecipes.keys.paths import expand_home

DEEPEST, MOST_NODES = 50, 100_000  # a config has a few levels and a few hundred values; aliases count as copies
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MISREAD = re.compile(r"[-+]?0[0-7_]+|.*:.*")


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates, and with numbers such as 1e-4, which YAML 1.1 reads as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(path: str | os.PathLike) -> dict:
    """Reads a YAML mapping; InputError with file and line for what is refused."""
    return read_yaml(path)[0]


def read_yaml(path: str | os.PathLike) -> tuple[dict, dict[str, int]]:
    """The mapping in a YAML file, with `~/` of its paths written out, and the line of each of its keys.

    Raises:
        InputError: the file cannot be read, is not YAML or not a mapping, or holds what is refused; names file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        raise InputError(f"{path}: cannot be read ({error.__class__.__name__}); check the path") from error
    values, root = _parse(text, str(path))
    if not isinstance(values, dict):
        found = "empty" if values is None else "a list" if isinstance(values, list) else "a single value"
        raise InputError(f"{path}: must hold `key: value` lines, but is {found}")
    return expand_home(values), {key.value: key.start_mark.line + 1 for key, _ in root.value}


def parse_yaml(text: str, where: str) -> Any:
    """The value of `text` in YAML, for command-line options; InputError with `where`."""
    return _parse(text, where, with_lines=False)[0]


def _parse(text: str, where: str, with_lines: bool = True) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _Check(where, with_lines).visit(root, ())
        return loader.construct_document(root), root  # also resolves merge keys in `root`
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and with_lines else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise InputError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply to be a config") from None
    except (ValueError, LookupError, OverflowError) as error:  # integers of thousands of digits, !!bool x, ...
        raise InputError(f"{where}: holds a value that cannot be read ({str(error)[:80]})") from None


class _Check:
    """Refuses what no config can mean, before anything is built from it."""

    def __init__(self, where: str, with_lines: bool):
        self.where, self.with_lines, self.seen = where, with_lines, 0

    def refuse(self, node: yaml.Node, problem: str):
        line = f":{node.start_mark.line + 1}" if self.with_lines else ""
        raise InputError(f"{self.where}{line}: {problem}")

    def visit(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
        self.seen += 1
        if any(node is other for other in above):
            self.refuse(node, "an alias (*name) is inside the value that it names")
        if len(above) > DEEPEST:
            self.refuse(node, f"nested more than {DEEPEST} levels deep")
        if self.seen > MOST_NODES:
            self.refuse(node, f"more than {MOST_NODES:,} values, aliases counted as copies")
        if node.tag not in PLAIN:
            self.refuse(node, f"`{node.tag.rpartition(':')[2]}` values have no place in a config")
        if node.tag in NUMBERS and MISREAD.fullmatch(node.value):
            base, advice = (60, "put it in quotes") if ":" in node.value else (8, "leave the zero out, or put it in quotes")
            self.refuse(node, f"{node.value[:60]} would be read as a number in base {base}; {advice}")
        if isinstance(node, yaml.MappingNode):
            self.visit_mapping(node, (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self.visit(value, (*above, node))

    def visit_mapping(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> None:
        lines = {}
        for key, value in node.value:
            if key.tag == MERGE:
                self.visit(value, above)
                continue
            if key.tag != TEXT:
                shown = str(key.value)[:60] if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                self.refuse(key, f"key `{shown}` is not text in YAML; unknown here, or to be written in quotes")
            if key.value in lines:
                self.refuse(key, f"key `{key.value[:60]}` is given already in line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
            self.visit(value, above)
