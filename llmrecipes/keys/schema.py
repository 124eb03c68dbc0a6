"""Keys of every recipe for editors: configs/schemas/STAGE.json.

`python -m llmrecipes.keys.schema` regenerates them from the dataclasses' sources; a test fails when that is due. An editor
with a YAML language server completes and checks a config with `# yaml-language-server: $schema=../schemas/STAGE.json`.
"""

import json
import re
from pathlib import Path

from llmrecipes.keys import UNKNOWN, Key, keys_of, recipe_keys
from llmrecipes.keys.mappings import MAPPINGS, OWN_KEYS, generation_keys
from llmrecipes.keys.schedules import all_schedule_arguments
from llmrecipes.keys.values import CHOICES, SOURCES, accepted, range_of

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "configs" / "schemas"
TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "dict": "object", "list": "array"}
TYPES |= {"None": "null", "tuple": "array"}


def to_schema(keys: dict[str, Key]) -> dict:
    """JSON Schema (draft 2020-12) of a mapping with these keys, `env`, and no others."""
    properties = {name: _property(name, key) for name, key in keys.items()}
    properties["env"] = {"type": "object", "description": "Environment variables, set before anything is imported."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(name: str, key: Key) -> dict:
    kinds, literals = accepted(key.annotation)
    choices = key.choices or CHOICES.get(name) or literals
    found = {"description": " ".join(key.help.split())} if key.help else {}
    element = re.search(r"list\[(\w+)\]", key.annotation)
    of_sources = SOURCES.get(element[1]) if element else None
    if name == "watch_questions" or of_sources:
        source = {"type": "object", "additionalProperties": False, "required": ["path"]}
        source["properties"] = {
            inner: _property(inner, of) for inner, of in keys_of(of_sources or SOURCES["DatasetSource"]).items()
        }
        one = {"anyOf": [{"type": "string"}, source]}
        return found | {"anyOf": [*one["anyOf"], {"type": "array", "items": one}, {"type": "null"}]}
    if choices and "list" not in kinds:
        found["enum"] = [*choices, *([None] if "None" in kinds else []), *([False] if "no" in choices else [])]
    elif kinds:
        types = {TYPES[kind] for kind in kinds}
        types |= {"string", "number", "boolean"} if "list" in kinds else set()  # a single entry is accepted as a list
        types |= {"string"} if {"integer", "number", "boolean"} & types else set()  # 1e-4 is text in YAML 1.1; "auto"
        found["type"] = sorted(types)
    if key.default not in (UNKNOWN, None, "") and isinstance(key.default, (int, float, str, bool, list, dict)):
        found["default"] = key.default
    found |= _entries(name)
    if bounds := range_of(name, key.owner):
        found["description"] = f"{found.get('description', '')} ({bounds})".strip()
    return found


def _entries(name: str) -> dict:
    """What the mapping that is the value of the key `name` holds, by the sources that its check reads too."""
    if name in MAPPINGS:
        entries = {inner: _property(inner, key) for inner, key in keys_of(MAPPINGS[name]).items()}
        if name == "fsdp_config":  # as in accelerate's own files
            entries |= {f"fsdp_{inner}": of for inner, of in entries.items()}
        return {"properties": entries, "additionalProperties": False}
    if name == "generation_kwargs":  # vLLM's has others
        return {"properties": {inner: {} for inner in sorted(generation_keys() - OWN_KEYS.keys())}}
    if name == "lr_scheduler_kwargs":  # which of them depends on the schedule
        return {"properties": {inner: {} for inner in sorted(all_schedule_arguments())}}
    return {}


def schemas() -> dict[str, str]:
    """Stage -> text of its schema file."""
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    return {path.stem: json.dumps(to_schema(recipe_keys(path)), ensure_ascii=False, indent=0) + "\n" for path in recipes}


def main() -> None:
    """Writes all schemas."""
    SCHEMAS.mkdir(exist_ok=True)
    for stage, text in schemas().items():
        (SCHEMAS / f"{stage}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
