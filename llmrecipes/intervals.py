"""Intervals that cover the truth in at least about 95 of 100 samples, also for few items, near 0 and 1, and in clusters.

Cheap intervals (Wald's, Wilson's, a percentile bootstrap over few items) are too short in exactly those cases;
`tests/test_intervals.py` simulates them. Proportions get exact limits, which are somewhat too wide rather than too short.

`groups` holds one value per item. Items of one group (wordings of one question, pairs of one ranking) are not treated as
independent: the interval is that of n / deff independent items, where deff is the design effect (Kish 1965; Korn and
Graubard 1998 use exact limits with this effective n). An item whose group is None is a group of its own.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

TAIL = (1 - 0.95) / 2  # probability on each side of a 95 % interval


def exact_interval(successes: float, n: float) -> tuple[float, float]:
    """Interval of a proportion (Clopper and Pearson 1934), which covers it in at least 95 % of all samples.

    With s successes and α = 0.05: low is the α/2 quantile of Beta(s, n - s + 1), high the 1 - α/2 quantile of
    Beta(s + 1, n - s). successes and n may be fractional (an effective number of items).

    Raises:
        ValueError: n is below 1, or successes are not between 0 and n.
    """
    from scipy.special import betaincinv

    if n < 1:
        raise ValueError("a proportion of no items")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    failures = n - successes
    low = float(betaincinv(successes, failures + 1, TAIL)) if successes else 0.0
    return low, float(betaincinv(successes + 1, failures, 1 - TAIL)) if failures else 1.0


def outcome_interval(outcomes: Sequence[float], groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """Interval of the mean of outcomes that are 0, 0.5 (a tie) or 1.

    The mean is 1/2 + (won - lost) / 2, with the shares of 1 and of 0. The exact limits of both shares are combined as in
    Newcombe (1998, Statistics in Medicine 17:2635, method 10) for the difference of paired proportions:
    lower = won - lost - sqrt(a² + b² - 2 φ a b), where a = won - low(won), b = high(lost) - lost, and φ is the correlation
    of the two shares, -sqrt(won lost / ((1 - won) (1 - lost))), since an item cannot be both. Without ties the limits are
    those of `exact_interval`; with nothing but ties both shares are 0 of n.
    """
    size = len(outcomes) / design_effect(outcomes, groups)
    won, lost = (sum(outcome == end for outcome in outcomes) / len(outcomes) for end in (1, 0))
    (won_low, won_high), (lost_low, lost_high) = (exact_interval(share * size, size) for share in (won, lost))
    others = (1 - won) * (1 - lost)
    # -φ, so that it enters `_together` with a plus.
    alike = math.sqrt(won * lost / others) if others else float(won + lost == 1)
    below = _together(won - won_low, lost_high - lost, alike)
    above = _together(won_high - won, lost - lost_low, alike)
    return max(0.0, (1 + won - lost - below) / 2), min(1.0, (1 + won - lost + above) / 2)


def design_effect(outcomes: Sequence[float], groups: Sequence[Hashable] | None = None) -> float:
    """The design effect: variance of the mean under this grouping over that of n independent items.

    From 1 up to sum(sizes ** 2) / n, the size-weighted mean group size m, which it reaches when all items of a group agree.
    The larger of two estimates: (1) the variance of the mean computed over groups, over that computed over items; (2) Kish's
    1 + rho (m - 1), with rho, the correlation within groups, estimated from how often the rarer outcomes occur together. (2)
    adds one pseudo-item whose group agrees with it, so that rho is taken to be near 1 where few items say anything about it.

    Raises:
        ValueError: there are no outcomes.
    """
    if not outcomes:
        raise ValueError("a proportion of no items")
    clusters, n = by_group(list(map(float, outcomes)), groups), len(outcomes)
    greatest = sum(len(cluster) ** 2 for cluster in clusters) / n
    mean = sum(map(sum, clusters)) / n
    spread = sum((outcome - mean) ** 2 for cluster in clusters for outcome in cluster)
    if len(clusters) == n or not spread:
        return greatest
    between = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in clusters) * len(clusters)
    seen = between / max(1, len(clusters) - 1) / spread
    told = 1 + _correlation(clusters) * (greatest - 1)
    return min(greatest, max(1.0, seen, told))


def by_group(values: Sequence, groups: Sequence[Hashable] | None = None) -> list[list]:
    """The values of each group, groups in the order of their first items; a value with group None is a group of its own."""
    members: dict = {}
    for i, (value, group) in enumerate(zip(values, groups if groups is not None else [None] * len(values), strict=True)):
        members.setdefault((i,) if group is None else (group, ""), []).append(value)
    return list(members.values())


def expanded_levels(n: int) -> tuple[float, float]:
    """The quantile levels at which to read a bootstrap over n items as an interval (Hesterberg 2015, The American
    Statistician 69:371): Φ(± sqrt(n / (n - 1)) t), t being the quantile of Student's distribution with n - 1 degrees.

    A bootstrap's spread is too small by sqrt((n - 1) / n) and is used as if normal, so plain percentiles are too narrow for
    few items. Levels of 0.9 % and 99.1 % for n = 10, of about 2.5 % and 97.5 % for large n."""
    from scipy.special import ndtr, stdtrit

    if n < 2:
        return 0.0, 1.0
    low = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL)))
    return low, 1 - low


def _correlation(clusters: list[list[float]]) -> float:
    counts = Counter(outcome for cluster in clusters for outcome in cluster)
    usual = counts.most_common(1)[0][0]
    rare = sum(count for outcome, count in counts.items() if outcome != usual)
    chance = sum(count**2 for outcome, count in counts.items() if outcome != usual) / rare / sum(counts.values())
    items, alike, telling = 0, 0.0, 0
    for cluster in clusters:
        own = Counter(outcome for outcome in cluster if outcome != usual)
        if len(cluster) > 1 and own:
            telling += 1
            items += sum(own.values())
            alike += sum(count * (count - 1) for count in own.values()) / (len(cluster) - 1)
    more = items / telling if telling else 1.0
    return max(0.0, ((alike + more) / (items + more) - chance) / (1 - chance))


def _together(first: float, second: float, correlation: float) -> float:
    return math.sqrt(first**2 + second**2 + 2 * correlation * first * second)
