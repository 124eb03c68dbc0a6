"""Does a model agree with itself? The same question in other words, or asked several times with sampling."""

import re
from collections import defaultdict

from llmrecipes import metrics

# The parts in which two answers must agree; how well they are written does not matter.
STANCE = ("correct", "refused", "unknown", "polite", "toxic")


def alike(row: dict, one: tuple[str, dict], other: tuple[str, dict]) -> bool:
    """Whether two (answer, judgement) pairs for the question `row` say the same.

    They do if they are judged alike and, if both miss the question's right answer, have the same words: two different
    mistakes do not agree.
    """
    if any(one[1].get(part) != other[1].get(part) for part in STANCE):
        return False
    missed = row.get("answer") and one[1].get("correct") is False
    if missed and not one[1].get("refused") and not one[1].get("unknown"):
        return _words(one[0]) == _words(other[0])
    return True


def paraphrase_consistency(rows: list[dict], texts: list[str], judged: list[dict]) -> metrics.Estimate | None:
    """Share of questions whose wordings are all answered alike; rows with the same `key` are one question in other words.

    None if no key occurs twice or nothing was judged.
    """
    groups = defaultdict(list)
    for row, text, parts in zip(rows, texts, judged, strict=True):
        if row.get("key") and _is_judged(parts):
            groups[row["key"]].append((row, text, parts))
    asked = [group for group in groups.values() if len(group) > 1]
    hits = [all(alike(row, group[0][1:], (text, parts)) for row, text, parts in group) for group in asked]
    return metrics.accuracy(hits) if hits else None


def self_consistency(rows: list[dict], runs: list[tuple[list[str], list[dict]]]) -> metrics.Estimate | None:
    """Share of questions that all `runs` (answers, judgements) answer alike; None with one run or nothing judged."""
    answered = [(row, [(texts[i], judged[i]) for texts, judged in runs]) for i, row in enumerate(rows)]
    asked = [(row, said) for row, said in answered if all(_is_judged(parts) for _, parts in said)]
    if len(runs) < 2 or not asked:
        return None
    hits = [all(alike(row, said[0], other) for other in said[1:]) for row, said in asked]
    return metrics.accuracy(hits, [row.get("key") for row, _ in asked])


def _is_judged(parts: dict) -> bool:
    return any(part in parts for part in STANCE)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
