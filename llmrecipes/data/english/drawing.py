"""From tables to items: an even draw over kinds, different items, right answers spread evenly over the positions."""

from collections import defaultdict
from random import Random

Item = tuple[str, list[str]]  # context (may be empty); choices, the right one first


def with_distractors(rng: Random, rows: list[tuple[str, str]], count: int = 3) -> list[Item]:
    """(context, right answer) rows as items: the wrong answers are right answers of other rows of the same table."""
    answers = list(dict.fromkeys(answer for _, answer in rows))
    items = []
    for context, answer in rows:
        right = {other for same, other in rows if same == context}
        items.append((context, [answer, *rng.sample([a for a in answers if a not in right], count)]))
    return items


def draw(rng: Random, by_kind: dict[str, list[Item]], num_items: int) -> list[dict]:
    """`num_items` different rows `kind`, `context`, `choices`, `label`, as evenly over the kinds as they allow.

    Raises:
        ValueError: the kinds together hold fewer different items.
    """
    queues = {}
    for kind, items in by_kind.items():
        different = {(context, choices[0]): (context, choices) for context, choices in items}
        queues[kind] = rng.sample(list(different.values()), len(different))
    drawn = []
    while len(drawn) < num_items:
        if not any(queues.values()):
            raise ValueError(f"{len(drawn)} different items, {num_items} wanted")
        drawn += [(kind, *queue.pop()) for kind, queue in queues.items() if queue]
    drawn = drawn[:num_items]
    rng.shuffle(drawn)
    rows, places = [], defaultdict(int)
    for kind, context, (right, *wrong) in drawn:
        label = places[len(wrong)] % (len(wrong) + 1)
        places[len(wrong)] += 1
        rng.shuffle(wrong)
        rows.append({"kind": kind, "context": context, "choices": [*wrong[:label], right, *wrong[label:]], "label": label})
    rng.shuffle(rows)
    return rows
