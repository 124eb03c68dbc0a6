"""What people and models are asked, and what becomes of their judgements: samples in, rows of rankings.jsonl out."""

import re
from collections.abc import Sequence

from llmrecipes.config import InputError
from llmrecipes.formats import check_ranking
from llmrecipes.turns import short

FLAGS = ("harmful", "untrue", "rude", "off-topic")


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


def in_stored_order(
    ranking: list[list[int]], flags: dict, responses: list[str], order: list[int], where: str
) -> tuple[list[list[int]], dict[str, list[str]]]:
    """A ranking and flags by places as shown, converted to the answers' numbers in the sample; `order`: answer at each
    place.

    Raises:
        InputError: the ranking does not order each answer exactly once, or a flag or its place is unknown.
    """
    check_ranking({"responses": [responses[i] for i in order], "ranking": ranking}, where)
    if sum(map(len, ranking)) != len(order):
        raise InputError(f"{where}: the ranking leaves answers out; rank or tie each of the {len(order)}")
    for place, names in flags.items():
        is_place = re.fullmatch(r"[0-9]{1,3}", str(place)) and int(place) < len(order)
        if not is_place or not all(name in FLAGS for name in names):
            raise InputError(f"{where}: flags {names!r} of answer {place!r}; known are {', '.join(FLAGS)}")
    marked = {str(order[int(place)]): sorted(names) for place, names in flags.items() if names}
    return [sorted(order[i] for i in group) for group in ranking], marked


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
