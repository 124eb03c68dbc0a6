"""Numbers in, numbers out: the measures this project reports, each with its interval. Nothing here knows a model.

Every measure of a sample of n items is returned as an `Estimate(value, low, high, n)`, where [low, high] is a 95 % interval.
Measures of nothing (n = 0) raise ValueError: a caller must say that it measured nothing rather than report a zero.

`groups` holds one value per item. Items of one group (wordings of one question) are not treated as independent: intervals
and tests are over groups. An item whose group is None is a group of its own. intervals.py explains the intervals.
"""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from llmrecipes.intervals import by_group, exact_interval, expanded_levels, outcome_interval

ALPHA = 0.05  # p-values below it are marked as significant
RESAMPLES = 2000  # of a bootstrap


class Estimate(NamedTuple):
    """A measured value, its interval [low, high] and the number of items n it was measured on."""

    value: float
    low: float
    high: float
    n: int


def proportion(successes: float, n: int) -> Estimate:
    """successes / n with its exact interval (intervals.exact_interval)."""
    return Estimate(successes / n if n else 0.0, *exact_interval(successes, n), n)


def accuracy(hits: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Share of true values in `hits`, with an exact interval that accounts for groups (intervals.outcome_interval)."""
    return mean_outcome(list(map(bool, hits)), groups=groups)


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of values with a bootstrap interval (Efron 1979; intervals.expanded_levels), drawn with a fixed seed. With
    groups, whole groups are resampled (cluster bootstrap)."""
    return ratio(values, [1.0] * len(values), groups)


def _group_sums(values: Sequence[float], groups: Sequence[Hashable] | None) -> list[float]:
    return [sum(members) for members in by_group(values, groups)]


def ratio(numerators: Sequence[float], denominators: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """sum(numerators) / sum(denominators) over n items; the bootstrap resamples whole items, or whole groups.

    For quantities defined only over many items, such as nats per token over documents of unequal length.
    """
    import numpy as np

    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators but {len(denominators)} denominators")
    if not len(numerators):
        raise ValueError("a mean of no items")
    top, bottom = (np.asarray(_group_sums(values, groups), dtype=float) for values in (numerators, denominators))
    n = len(top)
    value = float(top.sum() / bottom.sum())
    rng = np.random.default_rng(0)
    # Drawn a slice of at most 4M indices (32 MB) at a time: all 2,000 x n would be 1.6 GB for n = 100,000.
    rows_per_slice = max(1, 4_000_000 // n)
    resampled = []
    for start in range(0, RESAMPLES, rows_per_slice):
        picks = rng.integers(0, n, size=(min(rows_per_slice, RESAMPLES - start), n))
        resampled.append(top[picks].sum(axis=1) / bottom[picks].sum(axis=1))
    low, high = np.quantile(np.concatenate(resampled), expanded_levels(n))
    return Estimate(value, float(low), float(high), len(numerators))


def win_rate(scores: Sequence[float], baseline: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Share of prompts on which `scores` beats `baseline`, ties counting half; interval as in `mean_outcome`.

    Entry i of each is the score of one answer to prompt i.
    """
    return mean_outcome(_outcomes(scores, baseline), groups)


def mean_outcome(outcomes: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of wins (1), ties (0.5) and losses (0), with the interval of intervals.outcome_interval.

    Raises:
        ValueError: there is no outcome, or one with another value.
    """
    if not outcomes or not set(outcomes) <= {0, 0.5, 1}:
        raise ValueError("outcomes are 0, 0.5 or 1, at least one of them")
    return Estimate(sum(outcomes) / len(outcomes), *outcome_interval(outcomes, groups), len(outcomes))


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Share of pairs whose chosen score is above the rejected one, ties counting half; interval as in `mean_outcome`.

    Ties count half so that a model that gives every answer the same score gets 0.5 and not 0.

    groups: the ranking (or prompt) that each pair comes from. The pairs of one ranking share their responses; treated as
    independent, the six pairs of a ranking of four would make the interval much too short.
    """
    return mean_outcome(_outcomes(chosen, rejected), groups)


def _outcomes(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    if len(scores) != len(others):
        raise ValueError(f"{len(scores)} scores but {len(others)} to compare them with")
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, others, strict=True)]


def calibration_error(confidences: Sequence[float], hits: Sequence[bool], num_bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): Σ_bins (n_bin / n) |accuracy - mean confidence|, bins of equal width.

    confidences: in [0, 1]; a value on a border belongs to the bin below it. Raises ValueError if there are none, or one is
    outside [0, 1].
    """
    if len(confidences) != len(hits):
        raise ValueError(f"{len(confidences)} confidences but {len(hits)} hits")
    if not confidences or not all(0 <= c <= 1 for c in confidences):
        raise ValueError("calibration needs at least one confidence, all between 0 and 1")
    bins: dict[int, list] = {}
    for confidence, hit in zip(confidences, hits, strict=True):
        bins.setdefault(max(0, math.ceil(confidence * num_bins) - 1), []).append((confidence, bool(hit)))
    gaps = (abs(sum(hit - confidence for confidence, hit in items)) for items in bins.values())
    return sum(gaps) / len(confidences)


def mcnemar(
    first: Sequence[bool], second: Sequence[bool], groups: Sequence[Hashable] | None = None
) -> tuple[int, int, float]:
    """(only the first is right, only the second is right, two-sided exact p-value) of two models on the same items.

    McNemar (1947), exact binomial form: items on which both are right or both wrong say nothing; under the null each of the
    b + c others favours either model with probability 1/2, so b ~ Binomial(b + c, 1/2). With groups, whole groups flip
    (sign_flip_test).
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} items but {len(second)} of the other model")
    if not first:
        raise ValueError("McNemar's test of no items")
    differences = [bool(x) - bool(y) for x, y in zip(first, second, strict=True)]
    return differences.count(1), differences.count(-1), sign_flip_test(_group_sums(differences, groups))


def sign_flip_test(differences: Sequence[int]) -> float:
    """Two-sided exact p-value P(|Σ ± d_i| >= |Σ d_i|) of integer differences d_i, whose signs are independent fair coins
    under the null (Fisher's randomisation test, 1935). With all |d_i| = 1 it is McNemar's exact test.

    The distribution of the sum is built by convolution, in O(n · Σ|d_i|), so no sampling is needed."""
    import numpy as np

    sizes = [abs(difference) for difference in differences if difference]
    probabilities = np.ones(1)  # of the sums -total, -total + 2, ..., total; total is the sum of the sizes so far
    for size in sizes:
        longer = np.zeros(len(probabilities) + size)
        longer[: len(probabilities)] += probabilities / 2
        longer[size:] += probabilities / 2
        probabilities = longer
    sums = np.arange(-sum(sizes), sum(sizes) + 1, 2)
    return min(1.0, float(probabilities[np.abs(sums) >= abs(sum(differences))].sum()))


def mcnemar_by_measure(
    first: dict[str, Sequence], second: dict[str, Sequence], groups: dict[str, Sequence[Hashable]] | None = None
) -> dict[str, float]:
    """McNemar's p-value of each measure that both have, over the items for which both have a value of true or false.

    first, second: measure -> one value per item, None where not measured; measures with other values are left out.
    groups: measure -> one group per item, for measures with groups; then whole groups flip (sign_flip_test).
    """
    tests = {}
    for name in first.keys() & second.keys():
        own = (groups or {}).get(name) or [None] * len(first[name])
        items = [item for item in zip(first[name], second[name], own, strict=True) if None not in item[:2]]
        if items and all(value in (0, 1) for item in items for value in item[:2]):
            tests[name] = mcnemar(*zip(*items, strict=True))[2]
    return {name: tests[name] for name in first if name in tests}


def describe_tests(baseline: str, p_values: dict[str, dict[str, float]]) -> str:
    """What the mark `*` next to a figure means: its p-value in `p_values` (model -> measure -> p) is below ALPHA."""
    count = sum(map(len, p_values.values()))
    return (
        f"* differs from {baseline} on the same questions, p < {ALPHA:g} (McNemar's exact test, wordings of a question "
        f"together; {count} comparisons, not corrected for their number)"
    )


def pair_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Share of item pairs that two raters order in the same way, among pairs that neither ties; None if there are none.

    first, second: each rater's ranks (or scores) of the same items. 1 = the same order, 0 = reversed, 0.5 = chance.
    """
    same, different, _, _ = _count_pairs(first, second)
    return same / (same + different) if same + different else None


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b (Kendall 1945), (concordant - discordant) / sqrt((pairs - ties₁)(pairs - ties₂)), which corrects for
    ties; None if one rater ties everything."""
    same, different, tied_first, tied_second = _count_pairs(first, second)
    pairs = len(first) * (len(first) - 1) // 2
    scale = math.sqrt((pairs - tied_first) * (pairs - tied_second))
    return (same - different) / scale if scale else None


def _count_pairs(first: Sequence[float], second: Sequence[float]) -> tuple[int, int, int, int]:
    """Numbers of item pairs ordered alike, ordered oppositely, tied by the first rater, tied by the second."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} items but {len(second)} of the other rater")
    same = different = tied_first = tied_second = 0
    for i in range(len(first)):
        for j in range(i):
            a, b = first[i] - first[j], second[i] - second[j]
            tied_first += a == 0
            tied_second += b == 0
            same += a * b > 0
            different += a * b < 0
    return same, different, tied_first, tied_second


def spearman(first: Sequence[float], second: Sequence[float], num_items: int | None = None) -> Estimate | None:
    """Rank correlation (Spearman 1904), ties at their mean rank. The 95 % interval is tanh(atanh(ρ) ± 1.96 sd), with
    variance (1 + ρ²/2) / (n - 3) (Bonett and Wright 2000), for n = `num_items` independent items (default: all). None for
    fewer than four items, or if one side is constant."""
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"{len(first)} items but {len(second)} of the other side")
    n = num_items or len(first)
    if n < 4 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    ranks = []
    for values in (first, second):
        _, places, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    value = float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))
    z = NormalDist().inv_cdf(0.975) * math.sqrt((1 + value * value / 2) / (n - 3))
    centre = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, value)))
    return Estimate(value, math.tanh(centre - z), math.tanh(centre + z), n)


def fit_temperature(differences: Sequence[float]) -> float | None:
    """The T > 0 that maximises Π sigmoid(difference / T), where a difference is score(chosen) - score(rejected).

    Temperature scaling (Guo et al. 2017) of a Bradley-Terry model: 1 means calibrated, above 1 overconfident. None if there
    is no best T: with no wrongly ordered pair T -> 0 is best, and for a model no better than guessing T -> ∞.
    """
    import numpy as np

    d = np.asarray(differences, dtype=float)
    if d.size == 0 or d.mean() <= 0 or not (d < 0).any():
        return None
    # The log-likelihood is concave in b = 1 / T; its slope, mean(d / (1 + exp(b d))), has one zero: bisection finds it.
    low, high = -20.0, 20.0  # of log b
    for _ in range(80):
        middle = (low + high) / 2
        slope = np.mean(d / (1 + np.exp(np.clip(math.exp(middle) * d, -500, 500))))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp(-middle)


def bradley_terry(votes: Sequence[tuple[str, str, float]]) -> dict[str, Estimate]:
    """Strength of each model on the Elo scale, mean 1000, with its 95 % interval; n is its number of votes.

    votes: (first, second, result), result 1 if the first won, 0 if the second did, 0.5 for a tie. The model of Bradley and
    Terry (1952), P(i beats j) = s_i / (s_i + s_j), is fitted by Hunter's minorisation-maximisation (2004, Annals of
    Statistics 32): s_i <- wins_i / Σ_j games_ij / (s_i + s_j), until no log s changes by 1e-9. Half a win and half a loss
    against an average opponent (s = 1) are added to each model, which keeps strengths finite if one never loses. 400 points
    are odds of 10 to 1.

    The interval is the normal approximation around that maximum: the covariance of log s, whose mean is held at 0, is the
    inverse of the information Σ_j games_ij p_ij (1 - p_ij) (diagonal; off it, -games_ij p_ij (1 - p_ij)). A bootstrap over
    votes would give a model that has won all its votes, even if these are two, an interval of no width.
    """
    import numpy as np

    names = sorted({name for first, second, _ in votes for name in (first, second)})
    if not names:
        return {}
    place = {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names),) * 2)
    for first, second, result in votes:
        wins[place[first], place[second]] += result
        wins[place[second], place[first]] += 1 - result
    games = wins + wins.T
    strength = np.ones(len(names))
    for _ in range(500):
        shared = (games / (strength[:, None] + strength[None, :])).sum(1) + 1.0 / (strength + 1.0)
        new = (wins.sum(1) + 0.5) / shared
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < 1e-9:
            break
        strength = new
    information = games * np.outer(strength, strength) / (strength[:, None] + strength[None, :]) ** 2
    added = strength / (1 + strength) ** 2
    centre = np.eye(len(names)) - 1 / len(names)
    covariance = np.linalg.pinv(centre @ (np.diag(information.sum(1) + added) - information) @ centre)
    points = 400 / np.log(10)
    return {
        name: Estimate(float(value), float(value - half), float(value + half), int(n))
        for name, value, half, n in zip(
            names, 1000 + points * np.log(strength), 1.96 * points * np.sqrt(np.diag(covariance)), games.sum(1), strict=True
        )
    }
