"""How good the judgements are: agreement between annotators, with themselves, position bias, hurried and slow items.

Numbers go to quality.json; quality_page() shows the same as HTML with charts, for the admin of the ranking page.
"""

import io
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape
from itertools import combinations
from random import Random

from llmrecipes import metrics
from llmrecipes.formats import prompt_text

RESAMPLES = 200
NEWEST = 200  # judgements shown in full
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


# --- the page -------------------------------------------------------------------------------------------------------


STYLE = (
    "body{font:1rem/1.5 system-ui;max-width:60rem;margin:1rem auto;padding:0 1rem;color-scheme:light dark;"
    "background:light-dark(#fff,#111827);color:light-dark(#111827,#f3f4f6)}"
    "svg{max-width:100%;height:auto}svg text{fill:currentColor}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .7rem;text-align:left;vertical-align:top;white-space:pre-line;border-bottom:1px solid #8886}"
)


def quality_page(quality: dict, judgements: Sequence[dict] = ()) -> str:
    """One HTML page without scripts or requests: charts, each with its numbers as a table, and the newest judgements."""
    columns = (
        "kind",
        "judgements",
        "median_seconds",
        "kendall_tau",
        "items_in_common",
        "self_consistency",
        "repeated_items",
    )
    told = {True: "yes", False: "no", None: "too few to tell"}
    people = [[name, *(values[c] for c in columns)] for name, values in quality["annotators"].items()]
    bias = quality["position_bias"]
    parts = [
        "<h1>Quality of the judgements</h1>",
        _table(("", ""), _facts(quality)),
        "<h2>Annotators</h2><p>Kendall's tau-b: against the mean of the others. Self-consistency: share of answer pairs "
        "ordered alike when an item came again.</p>",
        _bars({row[0]: row[4] for row in people if row[4] is not None}, "Kendall's tau-b against the others"),
        _table(("annotator", *(column.replace("_", " ") for column in columns)), people),
        "<h2>Position bias</h2><p>Mean relative place (0 best, 1 worst) by where an answer was shown; without bias 0.5.</p>",
        _bars(
            {f"shown {b['shown']}": b["mean_place"] for b in bias},
            "mean relative place",
            [(b["low"], b["high"]) for b in bias],
        ),
        _table(
            ("shown", "mean place", "low", "high", "n", "biased"),
            [[*list(b.values())[:-1], told[b["biased"]]] for b in bias],
        ),
        "<h2>Time outliers</h2>",
        _table(("annotator", "position", "seconds", ""), [list(o.values()) for o in quality["time_outliers"]]),
        "<h2>Items with the least agreement</h2>",
        _table(
            ("item", "pairs ordered alike"),
            sorted(((i, a) for i, a in quality["agreement_by_item"].items() if a is not None), key=lambda x: x[1])[:20],
        ),
    ]
    if judgements:
        columns = ("annotator", "position", "time", "prompt", "ranking", "flags", "note")
        newest = f"the newest {NEWEST} of {len(judgements)}" if len(judgements) > NEWEST else "the newest first"
        parts += [
            f"<h2>Judgements, {newest}</h2>",
            _table(columns, [_in_words(row) for row in judgements[: -NEWEST - 1 : -1]]),
        ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Quality of the judgements</title><style>{STYLE}</style>{''.join(parts)}</html>"
    )


def _facts(quality: dict) -> list[tuple]:
    alpha = quality["krippendorff_alpha"]
    said = (
        f"{alpha['value']:.2f} ({alpha['low']:.2f} to {alpha['high']:.2f}, {alpha['n']} items)" if alpha else "not known yet"
    )
    return [
        ("judgements", quality["judgements"]),
        ("items", quality["items"]),
        ("judged by several", quality["items_in_common"]),
        ("Krippendorff's alpha (ordinal)", said),
        ("all bad", quality["all_bad"]),
        ("flags", ", ".join(f"{name} {n}" for name, n in sorted(quality["flags"].items())) or "none"),
        ("who", ", ".join(f"{n} by a {kind}" for kind, n in quality["annotator_kinds"].items()) or "nobody"),
    ]


def _in_words(row: dict) -> list:
    short = lambda text: text if len(text) <= 60 else text[:57] + "..."
    answers = [short(text) for text in row["sample"]["responses"]]
    ranking = "\n".join(f"{n}. {' = '.join(answers[i] for i in group)}" for n, group in enumerate(row["ranking"], 1))
    flags = "; ".join(f"{answers[int(i)]}: {', '.join(names)}" for i, names in row["flags"].items())
    flags = "; ".join(filter(None, ["all bad" if row["all_bad"] else "", flags]))
    prompt = short(prompt_text(row["sample"]["prompt"]))
    return [row["annotator"], row["position"], row["time"], prompt, ranking, flags, row["note"]]


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    if not rows:
        return "<p>None.</p>"
    cells = ["<tr>" + "".join(f"<td>{escape(_text(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{''.join(cells)}</table>"


def _text(value) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _bars(values: dict[str, float], label: str, intervals: list[tuple[float, float]] | None = None) -> str:
    if not values:
        return ""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": label}):
        figure = Figure(figsize=(6.4, 0.8 + 0.3 * len(values)), layout="constrained")
        axes = figure.subplots()
        names, numbers = list(values), list(values.values())
        spread = None
        if intervals:
            spread = [
                [v - low for v, (low, _) in zip(numbers, intervals)],
                [high - v for v, (_, high) in zip(numbers, intervals)],
            ]
        axes.barh(names, numbers, xerr=spread, color="#3b82c4")
        axes.invert_yaxis()
        axes.set_xlim(min(0, *numbers), 1)
        axes.set_xlabel(label)
        axes.patch.set_facecolor("none")
        figure.patch.set_facecolor("none")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace("#000000", "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
