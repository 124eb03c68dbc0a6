"""How good the judgements are, for quality.json: agreement between annotators, with themselves, position bias, hurried and
slow items."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from random import Random

from llmrecipes import metrics

RESAMPLES = 200
OUTLIER = 3.5  # modified z-score 0.6745 (x - median) / MAD, threshold of Iglewicz and Hoaglin (1993)
HASTY = 1.0  # seconds: too short to have read a prompt and its answers
FEW = 20  # judgements needed for a bootstrap interval


def measure_quality(judgements: Sequence[dict]) -> dict:
    """quality.json from `Store.judgements()`.

    `krippendorff_alpha`: ordinal alpha over the places of every answer that several annotators ranked (Krippendorff 2018),
    with a bootstrap interval over items; 1 is perfect, 0 is chance. `annotators`: for each one Kendall's tau-b against
    the mean places given by the others, self-agreement on repeated items, and times. `position_bias`: mean relative place
    (0 best, 1 worst) of the answer shown first, second, ...; 0.5 each without bias. `time_outliers`: items whose time is
    far from the annotator's usual time, by the modified z-score of log seconds, or below a second. `agreement_by_item`:
    agreement on each item that several ranked. Unknown values are None.
    """
    first = [row for row in judgements if not row["is_repeat"]]
    by_item: dict[str, dict[str, dict[int, float]]] = defaultdict(dict)
    for row in first:
        by_item[row["item_id"]][row["annotator"]] = _places(row)
    shared = {item: places for item, places in by_item.items() if len(places) > 1}
    return {
        "judgements": len(first),
        "items": len(by_item),
        "items_in_common": len(shared),
        "all_bad": sum(row["all_bad"] for row in first),
        "flags": dict(Counter(flag for row in first for flags in row["flags"].values() for flag in flags)),
        "annotator_kinds": dict(Counter(row["annotator_kind"] for row in first)),
        "krippendorff_alpha": _alpha_with_interval(list(shared.values())),
        "annotators": {name: _annotator(name, judgements, shared) for name in sorted({r["annotator"] for r in judgements})},
        "position_bias": _position_bias(first),
        "time_outliers": _time_outliers(judgements),
        "agreement_by_item": {item: _agreement(places) for item, places in shared.items()},
    }


def low_agreement(quality: dict, threshold: float) -> set[str]:
    """item_ids of items whose annotators order less than the share `threshold` of answer pairs alike."""
    return {item for item, value in quality["agreement_by_item"].items() if value is not None and value < threshold}


def _places(row: dict) -> dict[int, float]:
    """Answer -> place, 1 is best; tied answers share the mean of their places."""
    places, before = {}, 0
    for group in row["ranking"]:
        places |= dict.fromkeys(group, before + (len(group) + 1) / 2)
        before += len(group)
    return places


def _compare(measure, one: dict[int, float], other: dict[int, float]) -> float | None:
    return measure([one[i] for i in sorted(one)], [other[i] for i in sorted(one)])


def _agreement(places: dict[str, dict[int, float]]) -> float | None:
    return _mean([_compare(metrics.pair_agreement, a, b) for a, b in combinations(places.values(), 2)])


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _alpha_with_interval(items: list[dict[str, dict[int, float]]]) -> dict | None:
    value = _alpha(items)
    if value is None:
        return None
    rng = Random(0)
    drawn = [_alpha(rng.choices(items, k=len(items))) for _ in range(RESAMPLES)]
    drawn = sorted(alpha for alpha in drawn if alpha is not None)
    low, high = drawn[int(0.025 * len(drawn))], drawn[math.ceil(0.975 * len(drawn)) - 1]
    return {"value": value, "low": low, "high": high, "n": len(items)}


def _alpha(items: list[dict[str, dict[int, float]]]) -> float | None:
    import krippendorff
    import numpy as np

    names = sorted({name for places in items for name in places})
    units = [
        [places.get(name, {}).get(i, np.nan) for name in names] for places in items for i in next(iter(places.values()))
    ]
    data = np.array(units, dtype=float).T
    if data.size == 0 or len(np.unique(data[~np.isnan(data)])) < 2:
        return None  # everything is tied: there is no order to agree on
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal"))


def _annotator(name: str, judgements: Sequence[dict], shared: dict) -> dict:
    own = [row for row in judgements if row["annotator"] == name]
    taus = []
    for places in shared.values():
        others = [p for other, p in places.items() if other != name]
        if name in places and others:
            rest = {i: sum(p[i] for p in others) / len(others) for i in others[0]}
            taus.append(_compare(metrics.kendall_tau, places[name], rest))
    taus = [tau for tau in taus if tau is not None]
    first = {row["item_id"]: row for row in own if not row["is_repeat"]}
    again = [(first[row["item_id"]], row) for row in own if row["is_repeat"] and row["item_id"] in first]
    return {
        "kind": own[0]["annotator_kind"],
        "judgements": len(own),
        "median_seconds": statistics.median(row["seconds"] for row in own),
        "kendall_tau": _mean(taus),
        "items_in_common": len(taus),
        "self_consistency": _mean([_compare(metrics.pair_agreement, _places(a), _places(b)) for a, b in again]),
        "repeated_items": len(again),
    }


def _position_bias(judgements: Sequence[dict]) -> list[dict]:
    """For each position on the page, the mean relative place with its 95 % interval; all-tied judgements are ignored.

    `biased`: whether the interval excludes 0.5. With few judgements (below FEW), only if Hoeffding's bound (1963),
    P(|mean - 0.5| >= t) <= 2 exp(-2 n t²), is below 5 % whatever the distribution, which takes at least 8 judgements that
    all agree (t = 0.5); otherwise None, too few to tell.
    """
    relative: dict[int, list[float]] = defaultdict(list)
    for row in judgements:
        places = _places(row)
        if len(row["ranking"]) > 1:
            for position, answer in enumerate(row["order_shown"]):
                relative[position].append((places[answer] - 1) / (len(places) - 1))
    estimates = {position: metrics.mean(values) for position, values in sorted(relative.items())}
    return [
        {
            "shown": position + 1,
            "mean_place": e.value,
            "low": e.low,
            "high": e.high,
            "n": e.n,
            "biased": not e.low <= 0.5 <= e.high if e.n >= FEW else abs(e.value - 0.5) > _bound(e.n) or None,
        }
        for position, e in estimates.items()
    ]


def _bound(n: int) -> float:
    return math.sqrt(math.log(2 / 0.05) / 2 / n)


def _time_outliers(judgements: Sequence[dict]) -> list[dict]:
    found = []
    for name in sorted({row["annotator"] for row in judgements}):
        own = [row for row in judgements if row["annotator"] == name and row["seconds"] > 0]
        logs = [math.log(row["seconds"]) for row in own]
        if not logs:
            continue
        middle = statistics.median(logs)
        spread = statistics.median(abs(value - middle) for value in logs)
        for row, value in zip(own, logs, strict=True):
            is_far = len(logs) >= 10 and spread and abs(0.6745 * (value - middle) / spread) > OUTLIER
            if is_far or row["seconds"] < HASTY:
                what = "fast" if row["seconds"] < HASTY or value < middle else "slow"
                found.append({"annotator": name, "position": row["position"], "seconds": row["seconds"], "what": what})
    return found
