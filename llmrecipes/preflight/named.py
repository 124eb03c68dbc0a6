"""Checks of what a config names: functions exist, folders are folders, the output is separate from the inputs."""

import ast
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from llmrecipes.code_files import module_file
from llmrecipes.config import generator_of
from llmrecipes.keys.paths import is_path
from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.keys.values import shown
from llmrecipes.manifest import strings
from llmrecipes.preflight.disk import leads_nowhere

MODELS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "reward_model_name_or_path",
    "value_model_name_or_path",
    "watch_reward_model",
    "models",
    "base_tokenizer_name_or_path",
)
TEXTS = ("guidelines", "judge_guidelines", "users_file", "blocked_words")
FILES = (*TEXTS, "rankings_file")
FUNCTIONS = ("reward_functions", "judge", "rule", "watch_rule")


def functions(s: Settings) -> Problems:
    """Named functions that do not exist, found without importing anything."""
    for key in FUNCTIONS:
        for name in strings([s.values.get(key)]):
            if problem := _function_problem(name):
                yield key, problem
    for key in ("datasets", "eval_datasets", "watch_questions"):
        for source in _entries(s.values.get(key)):
            reader = source.get("reader") if isinstance(source, dict) else None
            if reader and (problem := _function_problem(reader, needs_form=True)):
                yield key, f"reader: {problem}"


def _function_problem(name: str, needs_form: bool = False) -> str:
    module, colon, function = name.partition(":")
    if not re.fullmatch(r"[\w.]+:\w+", name):
        return f"{name[:80]!r} names no function; write package.module:function" if colon or needs_form else ""
    try:
        if find_spec(module.split(".")[0]) is None and module_file(module) is None:
            return f"{name}: there is no module {module} in the current folder or among the installed packages"
    except (ImportError, ValueError):
        return f"{name}: {module} is not a module's name; write package.module:function"
    file = module_file(module)
    if file is None:
        return ""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        return f"{file}, line {error.lineno}: {error.msg}"
    except (OSError, ValueError):
        return f"{file} cannot be read"
    is_open = any(
        isinstance(node, ast.ImportFrom)
        and node.names[0].name == "*"
        or isinstance(node, ast.FunctionDef)
        and node.name == "__getattr__"
        for node in ast.walk(tree)
    )
    return "" if is_open or function in _bound(tree) else f"{name}: {file} holds no {function}"


def _bound(tree: ast.Module) -> set[str]:
    """All names that are bound anywhere in a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def kinds(s: Settings) -> Problems:
    """Files given for a model's folder, folders given for a file, templates that are neither."""
    for key in MODELS:
        for path in strings([s.values.get(key)]):
            if os.path.isfile(path):
                yield key, f"{path} is a file; name the folder of a model, or a Hub id"
    for key in FILES:
        path = s.values.get(key)
        if isinstance(path, str) and os.path.isdir(path):
            yield key, f"{path} is a folder; name a file"
    for key in TEXTS:
        path = s.values.get(key)
        if isinstance(path, str) and os.path.isfile(path) and (problem := _text_problem(path)):
            yield key, f"{path} {problem}"
    for key in ("datasets", "eval_datasets", "watch_questions"):
        for source in _entries(s.values.get(key)):
            if not isinstance(source, dict):
                continue
            if source.get("columns") in ([], {}):
                yield key, f"{source['path']}: `columns` is empty; name those to keep, or leave it out"
            kind, unread = _unread(source["path"])
            for name in unread:
                if source.get(name):
                    yield key, f"{source['path']} is {kind}, of which `{name}` is not read; leave it out"
    if s.given("model_revision") and os.path.isdir(s.values.get("model_name_or_path") or ""):
        yield "model_revision", f"has no effect: {s['model_name_or_path']} is a folder, which has no revisions"
    compared = s.values.get("models")
    if s.given("model_revision") and isinstance(compared, dict) and all(os.path.isdir(str(m)) for m in compared.values()):
        yield "model_revision", "has no effect: all of `models` are folders, which have no revisions"
    template = s.values.get("chat_template_path")
    if template is not None and not str(template).strip():
        yield "chat_template_path", "is empty; name a Jinja file, a tokenizer's folder or a Hub id, or leave it out"
    elif isinstance(template, str) and os.path.isdir(template):
        if not any(Path(template, name).is_file() for name in ("tokenizer_config.json", "chat_template.jinja")):
            yield "chat_template_path", f"{template} holds no tokenizer; name a Jinja file or a tokenizer's folder"


def _text_problem(path: str) -> str:
    try:
        return "" if Path(path).read_text(encoding="utf-8-sig").strip() else "is empty"
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _unread(path: str) -> tuple[str, tuple[str, ...]]:
    """The kind of a source, and the keys that are not used for that kind."""
    if path == "stdlib" or path.startswith("pypi:"):
        return "an archive", ("data_dir", "revision")
    if generator_of(path):
        return "a generator", ("data_dir", "data_files", "revision", "sha256")
    if os.path.isfile(path):
        return "a file", ("data_dir", "data_files", "revision", "sha256")
    return ("a folder", ("revision", "sha256")) if os.path.isdir(path) else ("a data set of the hub", ("sha256",))


def literal(s: Settings) -> Problems:
    """Paths with placeholders that only a shell or a template would fill in."""
    for key in filter(is_path, s.values):
        for entry in _entries(s.values.get(key)):
            path = entry.get("path") if isinstance(entry, dict) else entry
            if not isinstance(path, str) or os.path.exists(path):
                continue
            if re.search(r"\$\w|\$\{|\{\{", path):
                yield key, f"{path} is taken as it stands, nothing is filled in; write it out, or give --{key} in a shell"
            elif not path.isprintable() or path != path.strip():
                yield key, f"{path!r} has a line break, a space at an end or the like in it; correct the path"
            elif path.startswith("~"):
                user = path[1:].partition("/")[0]
                yield key, f"{path}: there is no user {shown(user)} whose folder that would be; write the path out"


def apart(s: Settings) -> Problems:
    """An output folder that is, contains or is inside an input: the input would be overwritten, or change with every run."""
    output = s["output_dir"]
    if not output or "force" not in s.keys or "stages" in s.keys:
        return
    if leads_nowhere(there := Path(os.path.expanduser(output)).absolute()):
        return
    there = there.resolve()
    if there in (Path("/"), Path.home().resolve(), Path.cwd().resolve()):
        yield "output_dir", f"{output} is not a folder of the run's own; name one, e.g. outputs/<experiment>/<stage>"
        return
    for key in (*MODELS, *FILES, "datasets", "eval_datasets", "watch_questions", "sources"):
        for entry in _entries(s.values.get(key)):
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str) and os.path.exists(path) and (problem := _overlap(there, Path(path).resolve())):
                yield "output_dir", f"{output} {problem.format(key=f'`{key}`', path=path)}"
                return


def _overlap(output: Path, read: Path) -> str:
    if read == output:
        return "is what {key} reads, and would be overwritten; name another folder"
    if output in read.parents:
        return "holds {path}, which {key} reads and which would be removed; name another folder"
    return "lies in {path}, which {key} reads; name a folder next to it" if read in output.parents else ""


def _entries(value) -> Iterator:
    if isinstance(value, dict) and "path" not in value:
        yield from value.values()
    else:
        yield from value if isinstance(value, list) else [value]


CHECKS = (literal, functions, kinds, apart)
