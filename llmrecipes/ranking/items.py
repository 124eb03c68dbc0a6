"""What people and models are asked, and what becomes of their judgements: samples in, rows of rankings.jsonl out."""

from collections.abc import Sequence

from llmrecipes.config import InputError
from llmrecipes.turns import short


def check_items(samples: Sequence[dict]) -> list[dict]:
    """The samples, as `pairs.check_samples` returns them, that can be ranked: those whose answers are not all the same.

    A model may say nothing: an empty answer is a bad answer, but a row with only empty ones means a damaged file.

    Raises:
        InputError: a prompt id occurs twice, or all answers of a row are empty.
    """
    seen: set[str | int] = set()
    for row in samples:
        key = row["prompt_id"]
        if key in seen:  # rows are shuffled: their numbers say nothing
            raise InputError(f"datasets: two rows have the prompt_id or prompt {short(key)}; keep one")
        seen.add(key)
        if not any(text.strip() for text in row["responses"]):
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
