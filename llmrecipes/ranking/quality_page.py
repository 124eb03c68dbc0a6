"""quality.json as HTML with charts, for the admin of the ranking page."""

from collections.abc import Sequence
from html import escape

from llmrecipes.formats import prompt_text
from llmrecipes.report.plots import markup_of

NEWEST = 200  # judgements shown in full
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
        return markup_of(figure).replace("#000000", "currentColor")
