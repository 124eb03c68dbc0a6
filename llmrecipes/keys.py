"""Which keys a dataclass has, read from its source without importing it (or torch)."""

import ast
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass
class Key:
    """A key's type as its source writes it, and the values it may have where they are listed."""

    annotation: str
    choices: list | None = None


@cache
def keys_of(config_type) -> dict[str, Key]:
    """Keys of a dataclass, or of the one that "module:Class" names; its module is not imported."""
    module, name = config_type.split(":") if isinstance(config_type, str) else (None, config_type.__name__)
    file = _source_file(module) if module else Path(sys.modules[config_type.__module__].__file__)
    return _class_keys(file, name)


def _source_file(module: str) -> Path:
    top, *rest = module.split(".")
    path = Path(importlib.util.find_spec(top).submodule_search_locations[0]).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _class_keys(file: Path, name: str) -> dict[str, Key]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.asname or alias.name] = (node.level, node.module or "", alias.name)
    klass = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if klass is None and name in imported:
        return _class_keys(_imported_file(file, *imported[name]), imported[name][2])
    keys = {}
    for base in klass.bases if klass else []:
        keys.update(_class_keys(file, base.id))
    for node in klass.body if klass else []:
        if isinstance(node, ast.AnnAssign):
            keys[node.target.id] = Key(ast.unparse(node.annotation), _choices(node.value))
    return keys


def _imported_file(file: Path, level: int, module: str, name: str) -> Path:
    # Names that lazy packages re-export from a module of another name.
    lazy = {"TrainingArguments": "transformers.training_args", "ModelConfig": "trl.trainer.model_config"}
    if level == 0:
        return _source_file(lazy.get(name, module))
    path = file.parents[level - 1].joinpath(*module.split(".")) if module else file.parents[level - 1]
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _choices(default) -> list | None:
    for keyword in getattr(default, "keywords", []):
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(value, ast.List):
                    return ast.literal_eval(value)
    return None
