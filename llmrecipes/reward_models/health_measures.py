"""What scored preference pairs tell about a reward model: numbers in, numbers out, every share with its interval.

An estimate is {"value", "low", "high", "n"}. Pairs of one prompt share its responses, which the intervals account for
(llmrecipes.intervals); n counts pairs, or prompts for correlations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmrecipes import metrics

NUM_BINS = 10  # bins of the calibration curve, between 50 % and 100 %
HISTOGRAM_BINS = 24
MAX_CATEGORIES = 20


@dataclass
class ScoredPair:
    """A preference pair with its scores; lengths are those of the responses, in tokens."""

    prompt_id: str
    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int
    margin: float | None = None
    category: str | None = None

    @property
    def difference(self) -> float:
        return self.chosen_score - self.rejected_score

    @property
    def length_gap(self) -> int:
        return self.chosen_length - self.rejected_length


def measure_pairs(pairs: Sequence[ScoredPair]) -> dict:
    """All measures of `pairs`: accuracy (overall, by margin, length gap and category), calibration, length, scores."""
    found = {"num_pairs": len(pairs), "num_prompts": len({p.prompt_id for p in pairs}), "accuracy": accuracy_of(pairs)}
    with_margin = [p for p in pairs if p.margin is not None]
    found["by_margin"] = by_quantile(with_margin, lambda p: p.margin, 4)
    found["by_length_gap"] = by_quantile(pairs, lambda p: p.length_gap, 5)
    found["by_category"] = by_category(pairs)
    return found | {"calibration": calibration(pairs), "length": length_bias(pairs), "scores": distribution(pairs)}


def accuracy_of(pairs: Sequence[ScoredPair]) -> dict:
    """Share of pairs whose chosen response has the higher score, ties counting half."""
    scores, others = zip(*((pair.chosen_score, pair.rejected_score) for pair in pairs), strict=True)
    return metrics.pair_accuracy(scores, others, [pair.prompt_id for pair in pairs])._asdict()


def by_quantile(pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], float], num_groups: int) -> dict[str, dict]:
    """Accuracy in groups of pairs of about equal size, by `key` from small to large; equal values stay together."""
    import numpy as np

    if not pairs:
        return {}
    values = np.array([key(pair) for pair in pairs], dtype=float)
    levels = np.unique(values)
    borders = levels if len(levels) <= num_groups else np.unique(np.quantile(values, np.arange(1, num_groups) / num_groups))
    places = np.searchsorted(borders, values)
    groups = {}
    for place in np.unique(places):
        inside = values[places == place]
        label = f"{inside.min():g}" if inside.min() == inside.max() else f"{inside.min():g} to {inside.max():g}"
        groups[label] = accuracy_of([pair for pair, at in zip(pairs, places, strict=True) if at == place])
    return groups


def by_category(pairs: Sequence[ScoredPair]) -> dict[str, dict]:
    """Accuracy by category, largest first; those beyond MAX_CATEGORIES are grouped as "others"."""
    groups: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        if pair.category is not None:
            groups.setdefault(pair.category, []).append(pair)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rest = [pair for _, members in ordered[MAX_CATEGORIES:] for pair in members]
    return {name: accuracy_of(members) for name, members in ordered[:MAX_CATEGORIES] + ([("others", rest)] if rest else [])}


def calibration(pairs: Sequence[ScoredPair]) -> dict:
    """How well sigmoid(score difference), the probability that a Bradley-Terry model gives its preference, matches the
    observed frequency.

    `curve`: mean predicted and observed share by bins of that probability (from 0.5, since the model prefers one side).
    `error`: expected calibration error; `temperature`: see metrics.fit_temperature; `error_with_temperature`: the error of
    sigmoid(difference / T), with T fitted on the other half of the prompts (two-fold cross-fitting).
    """
    differences = [pair.difference for pair in pairs]
    bins: dict[int, list[ScoredPair]] = {}
    for pair in pairs:
        place = min(NUM_BINS - 1, int((_sigmoid(abs(pair.difference)) - 0.5) * 2 * NUM_BINS))
        bins.setdefault(place, []).append(pair)
    curve = [
        {
            "from": 0.5 + place / NUM_BINS / 2,
            "to": 0.5 + (place + 1) / NUM_BINS / 2,
            "predicted": math.fsum(_sigmoid(abs(p.difference)) for p in members) / len(members),
            "observed": accuracy_of(members),
        }
        for place, members in sorted(bins.items())
    ]
    half = {name: place % 2 for place, name in enumerate(sorted({pair.prompt_id for pair in pairs}))}
    parts = [[pair.difference for pair in pairs if half[pair.prompt_id] == side] for side in (0, 1)]
    fitted = [metrics.fit_temperature(part) for part in parts]
    scaled = [d / T for part, T in zip(parts, fitted[::-1], strict=True) for d in part] if all(fitted) else None
    return {
        "error": _calibration_error(differences),
        "temperature": metrics.fit_temperature(differences),
        "error_with_temperature": _calibration_error(scaled) if scaled else None,
        "curve": curve,
    }


def length_bias(pairs: Sequence[ScoredPair]) -> dict:
    """How length affects the score.

    `score_correlation`: Spearman's correlation of score and length over all responses. `pair_correlation`: the same for the
    differences within pairs, which the prompt cannot explain. `model_prefers_longer`, `raters_prefer_longer`: shares of the
    pairs that differ in length. `bias`: the first share minus the second, so that the raters' own preference is no bias.
    """
    lengths = [float(length) for p in pairs for length in (p.chosen_length, p.rejected_length)]
    prompts = len({p.prompt_id for p in pairs})
    overall = metrics.spearman([s for p in pairs for s in (p.chosen_score, p.rejected_score)], lengths, prompts)
    # Each pair in both directions: which side is labelled chosen must not matter.
    within = metrics.spearman(
        [sign * p.difference for p in pairs for sign in (1, -1)],
        [sign * p.length_gap for p in pairs for sign in (1, -1)],
        prompts,
    )
    found = {"score_correlation": overall and overall._asdict(), "pair_correlation": within and within._asdict()}
    unequal = [p for p in pairs if p.length_gap]
    if not unequal:
        return found
    raters = [float(p.length_gap > 0) for p in unequal]
    model = [_hit(p) if p.length_gap > 0 else 1 - _hit(p) for p in unequal]
    by_prompt = [p.prompt_id for p in unequal]
    for name, values in (("model_prefers_longer", model), ("raters_prefer_longer", raters)):
        found[name] = metrics.mean_outcome(values, groups=by_prompt)._asdict()
    bias = metrics.mean([m - r for m, r in zip(model, raters, strict=True)], groups=by_prompt)
    return found | {"bias": bias._asdict()}


def distribution(pairs: Sequence[ScoredPair]) -> dict:
    """Mean, standard deviation and quantiles of the chosen and the rejected scores, and a histogram of both."""
    import numpy as np

    sides = {"chosen": np.array([p.chosen_score for p in pairs]), "rejected": np.array([p.rejected_score for p in pairs])}
    everything = np.concatenate(list(sides.values()))
    sides = {**sides, "all": everything}
    quantiles = (0, 5, 25, 50, 75, 95, 100)
    found = {
        name: {"mean": float(scores.mean()), "std": float(scores.std())}
        | {f"p{q}": float(value) for q, value in zip(quantiles, np.percentile(scores, quantiles), strict=True)}
        for name, scores in sides.items()
    }
    edges = np.histogram_bin_edges(everything, HISTOGRAM_BINS)
    counts = {name: np.histogram(sides[name], edges)[0].tolist() for name in ("chosen", "rejected")}
    return found | {"histogram": {"edges": edges.tolist(), **counts}}


def _hit(pair: ScoredPair) -> float:
    return 1.0 if pair.difference > 0 else 0.5 if pair.difference == 0 else 0.0


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _calibration_error(differences: Sequence[float]) -> float:
    """Each pair from both sides, so that a tie is half a hit and no bin border favours one side."""
    confidences = [_sigmoid(sign * d) for d in differences for sign in (1, -1)]
    return metrics.calibration_error(confidences, [True, False] * len(differences), 2 * NUM_BINS)
