"""The project's files that a recipe runs: noted in its manifest, but not part of a run's identity. Imports nothing heavy."""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from llmrecipes.config import generator_of
from llmrecipes.manifest import ROOT, digest, strings

IMPORTS = re.compile(
    r"^[ \t]*(from[ \t]+llmrecipes[\w.]*[ \t]+import[ \t]*\([^)]*\)|(?:from|import)[ \t].*\bllmrecipes\b.*)", re.MULTILINE
)


def code_digest(recipe: Path, given: dict) -> str:
    """16 hex digits over the recipe, all project files that it imports, and the functions named in the config with what
    their modules import from the current folder."""
    named = [module_file(name.partition(":")[0]) for text in strings(given) if (name := generator_of(text))]
    files = set().union(*(code_files(script) for script in [recipe, *filter(None, named)] if script.exists()))
    files |= set().union(*map(users_files, filter(None, named)))
    return digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)])


def code_files(script: Path) -> set[Path]:
    """`script` and every project file that it imports, directly or indirectly."""
    return _reached(script, lambda _, source: filter(None, map(module_file, own_imports(source))))


def users_files(module: Path) -> set[Path]:
    """`module`, a file, and what it imports from the current folder, directly or not, apart from the project's own."""
    return _reached(module, _imports_from_here)


def _reached(start: Path, imports: Callable[[Path, str], Iterable[Path]]) -> set[Path]:
    found, todo = set(), [start]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        with suppress(SyntaxError, ValueError):
            todo += imports(file, file.read_text(encoding="utf-8"))
    return found


def _imports_from_here(file: Path, source: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        folder = file.parent if getattr(node, "level", 0) else Path.cwd()  # level: `from .`
        if module := getattr(node, "module", None):
            names = [module, *(f"{module}.{name}" for name in names)]
        for parts in [name.split(".") for name in names if name.split(".")[0] != "llmrecipes"]:
            path = folder.joinpath(*parts)
            yield from (inner for inner in (path.with_suffix(".py"), path / "__init__.py") if inner.is_file())


@cache  # a chain asks for the same files again for each of its stages
def own_imports(source: str) -> frozenset[str]:
    """The project modules that `source` imports, and imported names that may be modules. Only import statements are parsed:
    parsing whole files would add half a second to every start."""
    try:
        tree = ast.parse("\n".join(IMPORTS.findall(source)))
    except SyntaxError:  # an unmatched bracket in a comment, or a line of a docstring
        tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            if not ROOT.joinpath(*node.module.split(".")).with_suffix(".py").exists():  # a package: the names may be modules
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(module for module in modules if module.split(".")[0] == "llmrecipes")


def module_file(module: str) -> Path | None:
    """The source file of `module` if it is in this project or the current folder, otherwise None."""
    for root in (ROOT, Path.cwd()):
        path = root.joinpath(*module.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.exists():
                return candidate
    try:
        spec = importlib.util.find_spec(module.split(".")[0])  # only the top: finding a submodule would import it
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    inner = path.parent.joinpath(*module.split(".")[1:])
    return next((p for p in (inner.with_suffix(".py"), inner / "__init__.py", path) if p.exists()), None)
