"""Tiny Town: a generated, consistent little world that a model of a million parameters can learn in minutes.

`load_tinytown(name, split, seed)` gives source texts in seven styles, demonstrations, prompts, held-out questions and
ability items. Nothing is downloaded; the same arguments give the same rows on every machine.

What is held out: each question belongs to one split (`world.partition`). Training texts, demonstrations and prompts ask
only questions of the split `train`; plain statements of all facts stand in the source texts, so that a held-out question
tests whether a model can tell what it has read, not whether it has seen the reply.
"""

from collections.abc import Iterator
from random import Random

import datasets

from llmrecipes.config import InputError
from llmrecipes.data.tinytown.abilities import draw_abilities
from llmrecipes.data.tinytown.demonstrations import NUM_DEMONSTRATIONS, write_demonstration
from llmrecipes.data.tinytown.questions import PROMPT_COUNTS, QUESTION_COUNTS, TEST_COUNTS, draw_rows
from llmrecipes.data.tinytown.shelves import write_arxiv, write_books, write_wikipedia
from llmrecipes.data.tinytown.technical import write_github, write_stackexchange
from llmrecipes.data.tinytown.web import write_c4, write_commoncrawl

# style: (writer, documents in `train`); the counts follow LLaMA-1's proportions at 10 MB in all.
WRITERS = {
    "commoncrawl": (write_commoncrawl, 40000),
    "c4": (write_c4, 8000),
    "github": (write_github, 2000),
    "wikipedia": (write_wikipedia, 3000),
    "books": (write_books, 1800),
    "arxiv": (write_arxiv, 1600),
    "stackexchange": (write_stackexchange, 1700),
}
TEST_DOCUMENTS_SHARE = 0.05
SPLITS = dict.fromkeys(WRITERS, ("train", "test")) | {
    "demonstrations": ("train", "test"),
    "prompts": ("train", "test"),
    "questions": ("validation", "test"),
    "abilities": ("validation", "test"),
}
TEST_PROMPTS = 200


def load_tinytown(name: str, split: str = "train", seed: int = 0, num_rows: int | None = None) -> datasets.Dataset:
    """Generate one part of Tiny Town.

    Args:
        name: a source style (column `text`), `demonstrations` (`messages`, `kind`, `key`, `quality`), `prompts` or
            `questions` (`prompt`, `kind`, `key`, `answer`, `answer_class`), `abilities` (`ability`, `context`,
            `choices`, `label`).
        split: `train` or `test`; `validation` or `test` for `questions` and `abilities`, which no training may see.
        seed: draws other texts about the same world.
        num_rows: stop after this many rows; the rows are a prefix of those without a limit.

    Raises:
        InputError: for an unknown name or split, naming those there are, or for a limit below one.
    """
    if name not in SPLITS:
        raise InputError(f"tinytown: there is no part {name!r}; choose one of {', '.join(SPLITS)}")
    if split not in SPLITS[name]:
        raise InputError(f"tinytown: {name!r} has no split {split!r}; choose one of {', '.join(SPLITS[name])}")
    if num_rows is not None and num_rows < 1:
        raise InputError(f"tinytown: num_rows is {num_rows}; give 1 or more")
    rng = Random(f"{name}/{split}/{seed}")
    if name in WRITERS:
        return datasets.Dataset.from_dict({"text": list(_documents(name, split, rng, num_rows))})
    if name == "demonstrations":
        count = min(num_rows or NUM_DEMONSTRATIONS[split], NUM_DEMONSTRATIONS[split])
        return datasets.Dataset.from_list([write_demonstration(rng, split) for _ in range(count)])
    if name == "prompts":
        rows = draw_rows(rng, "train" if split == "train" else "validation", PROMPT_COUNTS)
        rows = rows if split == "train" else rows[:TEST_PROMPTS]
    elif name == "questions":
        rows = draw_rows(rng, split, TEST_COUNTS if split == "test" else QUESTION_COUNTS)
    else:
        rows = draw_abilities(rng, split)
    return datasets.Dataset.from_list(rows[:num_rows])


def _documents(style: str, split: str, rng: Random, limit: int | None) -> Iterator[str]:
    write, count = WRITERS[style]
    if split == "test":
        count = int(count * TEST_DOCUMENTS_SHARE)
    for _ in range(min(count, limit or count)):
        yield write(rng)
