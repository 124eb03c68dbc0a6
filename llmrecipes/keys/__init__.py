"""Which keys a dataclass has, read from its source without importing it (or torch)."""

import ast
import dataclasses
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

UNKNOWN = object()  # a default that the source code computes


@dataclass(frozen=True)
class Key:
    """A key's type as written in the source, its choices if listed, its default and its help."""

    annotation: str
    choices: list | None = None
    default: Any = UNKNOWN
    help: str = ""
    owner: str = ""  # the dataclass that declares it


@dataclass(frozen=True)
class _Module:
    """A module's source: what it defines and imports, including below `if` and `try`."""

    name: str
    package: str
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, str | None]]  # name -> (module, name there; None for the module itself)


def keys_of(config_type) -> dict[str, Key]:
    """Keys of a dataclass, or of the one named by "module:Class". Its module is imported only if its source cannot be
    followed."""
    if isinstance(config_type, str):
        return _keys(*config_type.split(":"))
    module = config_type.__module__
    keys = _class_keys(module, config_type.__name__, getattr(sys.modules[module], "__file__", None))
    return keys if keys is not None else _keys_of_class(config_type)


@cache
def _keys(module: str, name: str) -> dict[str, Key]:
    keys = _class_keys(module, name)
    return keys if keys is not None else _keys_of_class(getattr(importlib.import_module(module), name))


def _keys_of_class(config_type) -> dict[str, Key]:
    """The same, from the imported class itself."""
    keys = {}
    for field in dataclasses.fields(config_type):
        default = field.default
        if default is dataclasses.MISSING:
            default = UNKNOWN if field.default_factory is dataclasses.MISSING else field.default_factory()
        annotation = field.type if isinstance(field.type, str) else _written(field.type)
        keys[field.name] = Key(
            annotation, field.metadata.get("choices"), default, str(field.metadata.get("help", "")), config_type.__name__
        )
    return keys


def _written(annotation) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)


@cache
def _class_keys(module: str, name: str, file: str | None = None) -> dict[str, Key] | None:
    """Keys of class `name` and its bases; None if any part cannot be found in the sources."""
    source = _read(module, file)
    if source is None:
        return None
    if name not in source.classes:
        if name not in source.imported:
            return None
        there, name_there = source.imported[name]
        return None if name_there is None else _class_keys(there, name_there)
    keys = {}
    for base in source.classes[name].bases:
        found = _base_keys(source, base)
        if found is None:
            return None
        keys |= found
    for node in source.classes[name].body:
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith(("ClassVar", "typing.ClassVar")):
            annotation = ast.unparse(node.annotation)
            if isinstance(node.annotation, ast.Constant):  # a quoted annotation
                annotation = str(node.annotation.value)
            keys[node.target.id] = Key(annotation, *_field(source, annotation, node.value), name)
    return keys


def _base_keys(source: _Module, base: ast.expr) -> dict[str, Key] | None:
    if isinstance(base, ast.Name) and base.id == "object":
        return {}
    if isinstance(base, ast.Name):
        if base.id in source.classes:
            return _class_keys(source.name, base.id, None if source.name != "__main__" else sys.modules["__main__"].__file__)
        there, name = source.imported.get(base.id, (None, None))
    elif isinstance(base, ast.Attribute):  # import package.module; class X(package.module.Base)
        there, name = ast.unparse(base.value), base.attr
        there = source.imported.get(there, (there, None))[0]
    else:
        return None
    return _class_keys(there, name) if there and name else None


@cache
def _read(module: str, file: str | None = None) -> _Module | None:
    path = Path(file) if file else _source_file(module)
    if path is None or not path.is_file() or path.suffix != ".py":
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    classes, imported = {}, {}
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            there = node.module or ""
            if node.level:
                there = importlib.util.resolve_name("." * node.level + there, package)
            for alias in node.names:
                imported[alias.asname or alias.name] = (there, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imported[alias.asname or alias.name] = (alias.name, None)
    return _Module(module, package, classes, imported)


def _statements(body: list[ast.stmt]):
    """Statements of a module, including those below `if` (TYPE_CHECKING of lazy packages) and `try`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
                yield from _statements(getattr(node, part, []))


def _source_file(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # find_spec of the full name would import the parent packages
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _field(source: _Module, annotation: str, value: ast.expr | None) -> tuple[list | None, Any, str]:
    """(choices, default, help) of `= value` or `= field(...)`."""
    options, metadata = {}, {}
    if isinstance(value, ast.Call):
        options = {keyword.arg: keyword.value for keyword in value.keywords}
        if isinstance(options.get("metadata"), ast.Dict):
            entries = zip(options["metadata"].keys, options["metadata"].values, strict=True)
            metadata = {key.value: entry for key, entry in entries if isinstance(key, ast.Constant)}
        value = options.get("default")
    default = _literal(value) if value is not None else UNKNOWN
    if "default_factory" in options:
        factory = options["default_factory"]
        empty = {"list": [], "dict": {}}.get(ast.unparse(factory), UNKNOWN)
        default = _literal(factory.body) if isinstance(factory, ast.Lambda) else empty
    choices = _literal(metadata.get("choices"))
    choices = _enum_values(source, annotation) if choices is UNKNOWN else choices
    text = _literal(metadata.get("help"))
    return choices, default, "" if text is UNKNOWN else str(text)


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else UNKNOWN
    except ValueError:
        return UNKNOWN


def _enum_values(source: _Module, annotation: str) -> list | None:
    """Values of the enum in an annotation such as `SchedulerType | str`, if there is one."""
    for name in annotation.split(" | "):
        where, klass = source, source.classes.get(name)
        if klass is None and name in source.imported and source.imported[name][1]:
            where = _read(source.imported[name][0])
            klass = where and where.classes.get(source.imported[name][1])
        if klass is None or not any(ast.unparse(base).endswith("Enum") for base in klass.bases):
            continue
        return [_literal(node.value) for node in klass.body if isinstance(node, ast.Assign)]
    return None


def recipe_keys(recipe: Path) -> dict[str, Key]:
    """Keys of all dataclasses named in a recipe's `launch(main, ...)` line, without importing the recipe."""
    calls = (node for node in ast.walk(ast.parse(recipe.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "launch")
    keys = {}
    for argument in call.args[1:]:
        if isinstance(argument, ast.Constant):
            keys |= keys_of(argument.value)
        else:
            keys |= _class_keys(f"recipes.{recipe.stem}", argument.id, str(recipe))
    return keys
