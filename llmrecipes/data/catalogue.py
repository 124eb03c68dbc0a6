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

END = "<|endoftext|>"
ASK = 'Let\'s think step by step and output the final answer after "####".'
NUMBER = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")


def tldr(rows: Iterable[dict]) -> Iterator[dict]:
    """Demonstrations {"prompt", "completion"} of posts and their summaries."""
    for row in rows:
        yield {"prompt": row["query"].strip(), "completion": row["reference_response"].removesuffix(END)}


def tldr_pairs(rows: Iterable[dict]) -> Iterator[dict]:
    """Preference pairs of summaries that people compared."""
    for row in rows:
        chosen, rejected = row["chosen"].removesuffix(END), row["rejected"].removesuffix(END)
        if chosen.strip() != rejected.strip():
            yield {"prompt": row["query"].strip(), "chosen": chosen, "rejected": rejected}


def gsm8k(rows: Iterable[dict]) -> Iterator[dict]:
    """{"prompt": [message], "answer": the number after "####", without commas}."""
    for row in rows:
        prompt = [{"role": "user", "content": f"{row['question']} {ASK}"}]
        yield {"prompt": prompt, "answer": _number(row["answer"])}


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
