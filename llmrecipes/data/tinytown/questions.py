"""Prompts without replies: `prompts` for sampling and PPO, and the held-out `questions` that every model is scored on."""

from random import Random

from llmrecipes.data.tinytown.behaviours import unpractised_items
from llmrecipes.data.tinytown.facts import Item
from llmrecipes.data.tinytown.sentences import all_items, items_of

# Prompts of each kind: more requests where the manner counts than among the demonstrations. A kind with fewer
# different questions gives what it has.
PROMPT_COUNTS = {
    "person": 360, "animal": 90, "job": 50, "thing": 140, "sum": 200, "code": 150, "context": 180, "chat": 120,
    "story": 90, "howto": 90, "lookalike": 220, "harmful": 300, "unknowable": 290,
}  # fmt: skip
# Held-out questions of each kind, by split; each behaviour that the test measures by a share has 160.
QUESTION_COUNTS = {
    "person": 100, "animal": 40, "job": 14, "thing": 40, "sum": 50, "code": 50, "context": 50, "chat": 24, "story": 24,
    "howto": 24, "lookalike": 48, "harmful": 80, "unknowable": 80,
}  # fmt: skip
TEST_COUNTS = QUESTION_COUNTS | {"lookalike": 160, "harmful": 160, "unknowable": 160}


def to_row(item: Item, question: str) -> dict:
    """A prompt row with everything `gold.judge` needs."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "kind": item.kind,
        "key": item.key,
        "answer": item.answer,
        "answer_class": item.answer_class,
    }


def draw_rows(rng: Random, split: str, counts: dict[str, int]) -> list[dict]:
    """Up to `counts[kind]` different questions of each kind from the items of `split`, shuffled."""
    rows = []
    for kind in all_items():
        items = items_of(kind, split) + (unpractised_items().get(kind, []) if split == "test" else [])
        pairs = [(item, question) for item in items for question in item.questions]
        rng.shuffle(pairs)
        rows += [to_row(item, question) for item, question in pairs[: counts[kind]]]
    rng.shuffle(rows)
    return rows
