"""Damaged files in the folder of a model: cut off, empty, of another kind, missing, or with values that no model has. Seen
without loading anything."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.durable import read_json
from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.manifest import strings
from llmrecipes.preflight.folders import no_text
from llmrecipes.preflight.model_values import lacks_sizes, wrong_values
from llmrecipes.preflight.named import MODELS

KEYS = (*MODELS, "chat_template_path")
# JSON objects that transformers and PEFT read.
CONFIG = "config.json"
OBJECTS = (
    CONFIG,
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}
AGAIN = "copy it again from where the model comes from, or run the stage that wrote it again"
REPAIR = f"correct it, or {AGAIN}"
POINTER = b"version https://git-lfs"
PULL = "is a pointer of Git LFS and not the file itself; run `git lfs pull` in that folder"


def models(s: Settings, weights: bool = True) -> Problems:
    """Damaged files in the folders of all models that a run reads, and of their adapters' bases; see `damages`."""
    seen = set()
    for key in KEYS:
        for path in strings([s.values.get(key)]):
            while os.path.isdir(path) and path not in seen:
                seen.add(path)
                yield from ((key, f"{path}: {problem}") for problem in damages(Path(path), weights))
                path = _base(Path(path))


def require_whole(folder: Path) -> None:
    """InputError if a file of the model in `folder` is damaged."""
    if problems := [f"{folder}: {problem}" for problem in damages(folder)]:
        raise InputError(*problems)


def damages(folder: Path, weights: bool = True) -> Iterator[str]:
    """A line for each damaged file of the model or tokenizer in `folder`: its name, what is wrong, what to do. `weights`:
    whether these are to be read, so that none may be missing."""
    for name in (*OBJECTS, TEMPLATE, *([INDEX] if weights else [])):
        if (folder / name).is_file() and (problem := _damage(folder / name)):
            yield f"{name} {problem}"
    if not weights:
        return
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)) and lacks_sizes(read_json(folder / CONFIG)):
        yield f"{CONFIG} says nothing of the model's sizes, such as `hidden_size`, beside weights that have some; {REPAIR}"
    named = _shards(folder / INDEX) if not (folder / WEIGHTS).is_file() else [WEIGHTS]
    for name in (*named, *filter(lambda name: (folder / name).is_file(), [ADAPTER])):
        if not (folder / name).is_file():
            yield f"{name} is missing, although {INDEX} names it; {AGAIN}"
        elif problem := _weights_damage(folder / name):
            yield f"{name} {problem}"


def template_problem(text: str) -> tuple[int, str] | None:
    """(line, what is wrong) with a chat template's Jinja, as transformers reads it; None if nothing is."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # {% generation %} ... {% endgeneration %}
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    try:
        ImmutableSandboxedEnvironment(extensions=[Generation, "jinja2.ext.loopcontrols"]).compile(text)
    except TemplateSyntaxError as error:
        return error.lineno, error.message
    return None


def _damage(file: Path) -> str:
    """What is wrong with a text file, a JSON object or a template, and what to do; "" if nothing is."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror}); see who may read it"
    if content.startswith(POINTER):
        return PULL
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = no_text(content) or f"not text (byte {error.start + 1:,})"
        return f"is {kind} where UTF-8 is expected; {AGAIN}"
    if text.startswith("\ufeff"):
        return "begins with a byte order mark; save it without"
    if not text.strip():
        return f"is empty; {AGAIN}"
    if file.name == TEMPLATE:
        return _of_template(text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        return f"is cut off; {AGAIN}" if is_cut else f"is no JSON in line {error.lineno} ({error.msg}); {REPAIR}"
    except (ValueError, RecursionError):  # a number without end, or lists in lists
        return f"is nested without end, or has a number without end; {AGAIN}"
    if not isinstance(value, dict):
        return f"holds {KINDS[type(value)]} where a JSON object is expected; {AGAIN}"
    if file.name == "tokenizer.json" and not (isinstance(value.get("model"), dict) and "added_tokens" in value):
        return f"holds no tokenizer, which has `model` and `added_tokens`; {AGAIN}"
    if wrong := next(wrong_values(file.name, value), ""):
        return f"{wrong}; {REPAIR}"
    template = value.get("chat_template") if file.name == "tokenizer_config.json" else None
    return _of_template(template, "in its chat_template, ") if isinstance(template, str) else ""


def _of_template(text: str, which: str = "") -> str:
    found = template_problem(text)
    return f"is no Jinja {which}in line {found[0]} ({found[1]}); {REPAIR}" if found else ""


def _shards(index: Path) -> list[str]:
    """The files that an index names; [] if it is damaged, which is reported as such."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({file for file in files if re.fullmatch(r"[\w.-]+", file)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _weights_damage(file: Path) -> str:
    """What is wrong with a safetensors file by its size and header (8 bytes of its length, then JSON), and what to do."""
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            begin = handle.read(len(POINTER))
            length = int.from_bytes(begin[:8], "little")
            if begin == POINTER:
                return PULL
            if size < 8 or length > size - 8:
                what = "is empty" if not size else "is cut off" if begin[8:9] in (b"{", b"") else "is no safetensors file"
                return f"{what}; {AGAIN}"
            handle.seek(8)
            header = json.loads(handle.read(length))
        ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"cannot be read ({error.strerror}); see who may read it"
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return f"is no safetensors file; {AGAIN}"
    return "" if size == wanted else f"has {size:,} bytes, and by its header {wanted:,}: it was not copied whole; {AGAIN}"


def _base(folder: Path) -> str:
    """The base that the adapter in `folder` names; "" if there is none."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return base if isinstance(base, str) else ""
