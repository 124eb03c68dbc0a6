"""Tokens in rows of text, measured on the first rows of a local file."""

import json
from itertools import islice
from pathlib import Path

from llmrecipes.config import DataArguments
from llmrecipes.keys.settings import Settings
from llmrecipes.plan.lookup import hub_file
from llmrecipes.preflight.folders import LINES, kind_of, open_file
from llmrecipes.preflight.machine import is_hub_id

FIRST = 200  # rows
TEXTS = ("text", "messages", "prompt", "completion")


def first_lengths(s: Settings, longest: int | None) -> list[int] | None:
    """Tokens of each of the first rows of the only source, at most `longest`, with one for its end; None unless it is a
    local file of lines and the tokenizer is here or in the Hub's cache."""
    if len(s["datasets"] or []) != 1:
        return None
    path = Path(DataArguments(datasets=s["datasets"]).datasets[0].path)
    name = s["tokenizer_name_or_path"] or s["model_name_or_path"] or ""
    file = Path(name) / "tokenizer.json"
    content = file.read_bytes() if file.is_file() else is_hub_id(name) and hub_file(name, None, file.name, seconds=0)
    if not content or not path.is_file() or kind_of(path) not in (*LINES, ".txt"):
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(content)
    try:
        with open_file(path, "rt", encoding="utf-8-sig") as lines:
            first = list(islice((line for line in lines if line.strip()), FIRST))
        rows = first if kind_of(path) == ".txt" else [_text(json.loads(line)) for line in first]
    except (OSError, EOFError, ValueError):
        return None
    lengths = [len(tokenizer.encode(row, add_special_tokens=False)) + 1 for row in rows]
    return [min(n, longest or n) for n in lengths] or None


def _text(row) -> str:
    """All text of a row that a model would learn from or read."""
    if isinstance(row, dict):
        return "\n".join(_text(row[key]) for key in row if key in (*TEXTS, "content"))
    return "\n".join(map(_text, row)) if isinstance(row, list) else str(row)
