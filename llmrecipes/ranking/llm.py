"""A language model as annotator, behind any OpenAI-compatible endpoint (also `transformers serve` on loopback).

Every pair of answers is judged in both orders (judging/pairwise.py). Judgements go into the same store as people's, marked
`annotator_kind: model`, so that an interrupted run continues and nothing is asked twice.
"""

import time
import uuid
from itertools import combinations

from tqdm import tqdm

from llmrecipes.formats import prompt_text
from llmrecipes.judging.endpoint import Endpoint, Verdicts
from llmrecipes.judging.pairwise import PairJudge
from llmrecipes.ranking.store import Store


class ModelAnnotator:
    """Ranks answers by asking `endpoint` which of two is better, with `guidelines` in each question."""

    def __init__(self, endpoint: Endpoint, guidelines: str):
        self.endpoint, self.pairs = endpoint, PairJudge(Verdicts(endpoint), guidelines)

    @property
    def usage(self) -> dict:
        return self.endpoint.usage

    def rank(self, prompt: str, answers: list[str]) -> list[list[int]]:
        """Groups of places, best first, by the number of pairs an answer wins, ties counting half (Copeland's method).

        Raises:
            InputError: the endpoint refuses, or gives no answer after several attempts.
        """
        pairs = list(combinations(range(len(answers)), 2))
        outcomes = self.pairs.compare_all([(prompt, answers[i], answers[j]) for i, j in pairs])
        score = [0.0] * len(answers)
        for (i, j), outcome in zip(pairs, outcomes, strict=True):
            won = 0.5 if outcome is None else outcome  # an unreadable reply counts as a tie
            score[i] += won
            score[j] += 1 - won
        return [[i for i, own in enumerate(score) if own == value] for value in sorted(set(score), reverse=True)]


def rank_items(store: Store, annotator: ModelAnnotator, price: tuple[float, float] | None) -> dict[str, float]:
    """Lets the model rank every item waiting for it; returns calls, tokens and, with `price`, the cost.

    price: dollars per million prompt tokens and per million completion tokens.
    """
    name = f"model:{annotator.endpoint.model}"
    progress = store.progress(name)
    with tqdm(
        total=progress["total"], initial=progress["done"], desc=f"ranked by {annotator.endpoint.model}", unit="item"
    ) as bar:
        while (position := store.current(name)) is not None:
            started, item = time.monotonic(), store.shown(name, position)
            ranking = annotator.rank(prompt_text(item["prompt"]), item["answers"])
            store.add_judgement(
                name,
                position,
                uuid.uuid4().hex,
                "rank",
                ranking=ranking,
                annotator_kind="model",
                seconds=round(time.monotonic() - started, 2),
            )
            bar.update()
            bar.set_postfix(
                calls=annotator.usage["calls"],
                tokens=annotator.usage["prompt_tokens"] + annotator.usage["completion_tokens"],
            )
    numbers = annotator.endpoint.numbers(price)
    print("rank: " + ", ".join(f"{key[6:]} {value:,}" for key, value in numbers.items()), flush=True)
    return numbers
