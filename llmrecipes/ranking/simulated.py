"""Simulated raters: a rule scores each response, and every rater sees that score with their own noise.

No human made these rankings. They let the chain run end to end when nobody can be asked, and they give the reward model
training data that is as inconsistent as people are.
"""

from collections.abc import Callable, Sequence
from random import Random

from llmrecipes.config import InputError, as_score


def rank_simulated(
    rows: list[dict],
    rule: Callable[[dict, str], float],
    noise: Sequence[float],
    tie_width: Sequence[float],
    overlap: float,
    seed: int,
) -> list[dict]:
    """Rankings of rows with `prompt_id` and `responses`, one row for each prompt and rater.

    Args:
        rule: (row, response) -> score.
        noise: for each rater, the standard deviation of the Gaussian noise added to a score, in the rule's units.
        tie_width: for each rater, the difference below which responses count as equal; a strict rater's is small.
        overlap: share of prompts that every rater ranks; the others are ranked by one of them.
        seed: the same seed gives the same rankings, whatever the order or number of rows.

    Responses with the same text get the same score from a rater, and so always tie.
    """
    if len(noise) != len(tie_width) or not noise:
        raise InputError(f"rater_noise has {len(noise)} entries, rater_tie_width {len(tie_width)}; give one a rater")
    ranked = []
    for row in rows:
        gold = [_apply(rule, row, response) for response in row["responses"]]
        rng = Random(f"{seed}/{row['prompt_id']}")
        everybody, one = rng.random() < overlap, rng.randrange(len(noise))
        for rater in range(len(noise)) if everybody else [one]:
            scores = [
                score + noise[rater] * Random(f"{seed}/{rater}/{row['prompt_id']}/{text.strip()}").gauss(0, 1)
                for score, text in zip(gold, row["responses"], strict=True)
            ]
            ranked.append(
                row
                | {"ranking": rank_by_score(scores, tie_width[rater]), "scores": [round(s, 4) for s in scores]}
                | {"annotator": f"simulated-{rater + 1}"}
            )
    return ranked


def rank_by_score(scores: Sequence[float], tie_width: float = 0.0) -> list[list[int]]:
    """Groups of positions, best first, such as [[2], [0, 3], [1]]; those within tie_width of the best in their group tie."""
    groups: list[list[int]] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if groups and scores[groups[-1][0]] - scores[i] <= tie_width:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [sorted(group) for group in groups]


def _apply(rule: Callable, row: dict, response: str) -> float:
    try:
        return as_score(rule(row, response), "rule:", row["prompt"], response)
    except KeyError as error:
        raise InputError(f"rule: it needs a column {error}; the samples have {', '.join(row)}") from None
