"""Ability items {"context", "choices", "label"} for lm-eval tasks (configs/tasks/smalltalk), from real sets."""

import random
import re
from collections.abc import Iterable, Iterator

from llmrecipes.data.smalltalk.dialogues import choice_prompt, split_options, to_sentence
from llmrecipes.data.smalltalk.texts import code, passages

MIN_WORDS, MAX_WORDS = 6, 20


def multiple_choice(rows: Iterable[dict]) -> Iterator[dict]:
    """Which option answers the question? The prompt is worded as in dialogues.choice, so slices hold out the same ones."""
    for row in rows:
        options = [to_sentence(option) for option in split_options(row["options"])]
        gold = to_sentence(split_options(row["answer"])[0]) if row.get("answer") else None
        if gold in options:
            prompt = choice_prompt(row)
            yield {"context": prompt, "choices": options, "label": options.index(gold), "key": prompt}


def word_order(rows: Iterable[dict]) -> Iterator[dict]:
    """Which of two is the sentence as written? In the other one two neighbouring words have changed places (BoolQ)."""
    for passage in passages(rows):
        for sentence in re.split(r"(?<=[a-z]\.) (?=[A-Z])", passage["text"])[:1]:
            words = sentence.split(" ")
            if MIN_WORDS <= len(words) <= MAX_WORDS and sentence.isascii():
                rng = random.Random(sentence)
                i = rng.randrange(1, len(words) - 2)
                swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
                if swapped != words:
                    yield _two_choices("", sentence, " ".join(swapped), rng, passage["key"])


def code_lines(rows: Iterable[dict]) -> Iterator[dict]:
    """Which line comes next in a Python file: its own, or one from elsewhere in the same file?"""
    for piece in code(rows):
        lines = [line for line in piece["text"].split("\n") if line.strip()]
        rng = random.Random(piece["text"])
        if len(lines) >= 20:
            i = rng.randrange(6, len(lines) - 6)
            others = [line for line in lines[:-1] if line.strip() not in (lines[i].strip(), "") and len(line) > 10]
            if len(lines[i]) > 10 and others:
                context = "\n".join(lines[i - 5 : i]) + "\n"
                yield _two_choices(context, lines[i], rng.choice(others), rng, piece["key"])


def _two_choices(context: str, right: str, wrong: str, rng: random.Random, key: str) -> dict:
    label = rng.randrange(2)
    return {"context": context, "choices": [wrong, right] if label else [right, wrong], "label": label, "key": key}
