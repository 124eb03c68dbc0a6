"""Readers, and a reward function, for the data sets that the catalogue in configs/ trains on.

| reader | reads | gives |
|---|---|---|
| tldr | `query`, `reference_response` of the TL;DR posts of arXiv 2403.17031 | demonstrations |
| tldr_pairs | `query`, `chosen`, `rejected` of its comparisons | preference pairs |
| gsm8k | `question`, `answer` of openai/gsm8k | a prompt that asks for steps and "#### number", and the number |

The end marker written out in the texts of TL;DR is removed: tokenisation adds one.
"""

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

from llmrecipes.config import InputError
from llmrecipes.data.tables import say

END = "<|endoftext|>"
ASK = 'Let\'s think step by step and output the final answer after "####".'
NUMBER = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")


def tldr(rows: Iterable[dict]) -> Iterator[dict]:
    """Demonstrations {"prompt", "completion"} of posts and their summaries."""
    for number, row in enumerate(rows, start=1):
        query, summary = _texts(row, number, "query", "reference_response")
        yield {"prompt": query.strip(), "completion": summary.removesuffix(END)}


def tldr_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """Preference pairs of summaries that people compared; pairs of equal ones are left out, with a message."""
    left_out = 0
    for number, row in enumerate(rows, start=1):
        query, *sides = _texts(row, number, "query", "chosen", "rejected")
        chosen, rejected = (side.removesuffix(END) for side in sides)
        if chosen.strip() == rejected.strip():
            left_out += 1
            continue
        yield {"prompt": query.strip(), "chosen": chosen, "rejected": rejected}
    if left_out:
        say(f"tldr_pairs: left out {left_out} pairs whose summaries are equal")


def gsm8k(rows: Iterable[dict]) -> Iterator[dict]:
    """{"prompt": [message], "answer": the number after "####", without commas}."""
    for place, row in enumerate(rows, start=1):
        question, solution = _texts(row, place, "question", "answer")
        number = _number(solution)
        if number is None or not question.strip():
            what = "question is empty" if number else 'answer has no "#### number", so no response could ever be right'
            raise InputError(f"row {place}: {what}")
        yield {"prompt": [{"role": "user", "content": f"{question} {ASK}"}], "answer": number}


def _texts(row: dict, number: int, *columns: str) -> list[str]:
    """The texts in `columns` of the row of that number."""
    for column in columns:
        if not isinstance(row.get(column), str):
            found = "is no text" if column in row else f"is missing; it has {', '.join(row)}"
            raise InputError(f"row {number}: column {column} {found}")
    return [row[column] for column in columns]


def exact_answer(completions, answer, **_) -> list[float]:
    """1.0 for a completion whose last "#### number" is `answer`, else 0.0; no number is no answer."""
    given = [_number(_text(completion)) for completion in completions]
    return [float(found is not None and found == right) for found, right in zip(given, answer, strict=True)]


def _text(completion) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _number(text: str) -> str | None:
    found = NUMBER.findall(text)
    if not found:
        return None
    number = f"{Decimal(found[-1].replace(',', '')):f}"  # a float would forget the last digits of a long number
    number = number.rstrip("0").rstrip(".") if "." in number else number
    return "0" if number == "-0" else number
