"""What people and models are asked, and what becomes of their judgements: samples in, rows of rankings.jsonl out."""

import json
from collections.abc import Sequence

from llmrecipes.config import InputError
from llmrecipes.turns import short


def check_items(samples: Sequence[dict]) -> list[dict]:
    """The samples that can be ranked: those whose answers are not all the same.

    A model may say nothing: an empty answer is a bad answer, but a row with only empty ones means a damaged file.

    Raises:
        InputError: a row's prompt id is missing or occurs twice, an answer is not text, or all answers are empty.
    """
    given = [row.get("prompt_id") not in (None, "") for row in samples]
    seen: set[str] = set()
    for number, row in enumerate(samples, start=1):
        if not given[number - 1] and any(given):
            raise InputError(f"datasets, row {number}: prompt_id is missing; other rows have one")
        key = row["prompt_id"] if given[number - 1] else json.dumps(row.get("prompt"))
        if key in seen:  # rows are shuffled: their numbers say nothing
            raise InputError(f"datasets: two rows have the prompt_id or prompt {short(key)}; keep one")
        seen.add(key)
        answers = row["responses"]
        if not all(isinstance(text, str) for text in answers) or not any(text.strip() for text in answers):
            raise InputError(f"datasets: the responses of {short(key)} are empty or not text; leave the row out")
    kept = [row for row in samples if len({text.strip() for text in row["responses"]}) > 1]
    if not kept:
        raise InputError("datasets: in every row all responses are the same; sample with a temperature above 0")
    return kept


def to_rankings(judgements: Sequence[dict]) -> list[dict]:
    """Rows of rankings.jsonl from `Store.judgements()`: the sample's columns, the ranking, the annotator and further
    details.

    Repetitions of an item, which serve to measure the annotator, are left out.
    """
    columns = (
        "ranking",
        "annotator",
        "annotator_kind",
        "round",
        "all_bad",
        "flags",
        "note",
        "seconds",
        "order_shown",
        "time",
    )
    return [row["sample"] | {name: row[name] for name in columns} for row in judgements if not row["is_repeat"]]
