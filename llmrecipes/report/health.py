"""The section of the report on a reward model's health check: figures from health.json, each with its table."""

from llmrecipes.report import plots
from llmrecipes.report.blocks import Figure, Heading, Points, Said, Table, Text
from llmrecipes.report.numbers import estimate, number

GROUPS = {
    "by_set": "set",
    "by_margin": "margin",
    "by_length_gap": "length gap in tokens, chosen minus rejected",
    "by_category": "category",
}
LENGTH = {
    "score_correlation": "rank correlation of score and length, all responses",
    "pair_correlation": "the same for differences within pairs",
    "model_prefers_longer": "the model prefers the longer answer",
    "raters_prefer_longer": "the raters prefer the longer answer",
    "bias": "the model more than the raters",
}


def build_health(name: str, health: dict) -> list:
    """Blocks on the check of stage `name`; parts that the check did not reach are left out."""
    blocks = [Heading(name, mark=str(health.get("verdict")))]
    if health.get("reasons"):
        blocks.append(Points(health["reasons"]))
    if "accuracy" not in health:
        return blocks
    blocks.append(
        Text(
            f"{health['num_pairs']:,} held-out pairs of {health['num_prompts']:,} prompts; "
            f"{health['left_out']:,} too long. Brackets: 95 % interval."
        )
    )
    for key, title in GROUPS.items():
        if health[key]:
            figure = plots.plot_estimates(f"{name} {key}", health[key])
            rows = [[group, estimate(e, percent=True), f"{e['n']:,}"] for group, e in health[key].items()]
            blocks += [
                Heading(f"Accuracy by {title}", level=4),
                Figure(figure, f"accuracy by {title}"),
                Table([title, "accuracy", "pairs"], rows, folded=True),
            ]
    return blocks + _calibration(name, health["calibration"]) + _length(health) + _scores(name, health) + _mistakes(health)


def _calibration(name: str, found: dict) -> list:
    rows = [
        [
            f"{100 * b['from']:.0f} to {100 * b['to']:.0f} %",
            f"{100 * b['predicted']:.1f} %",
            estimate(b["observed"], percent=True),
            f"{b['observed']['n']:,}",
        ]
        for b in found["curve"]
    ]
    figures = [
        ["expected calibration error", number(found["error"])],
        ["temperature (1: calibrated, above: overconfident)", number(found["temperature"]) or "none fits"],
        ["error with the temperature of the other half", number(found["error_with_temperature"]) or "–"],
    ]
    return [
        Heading("Calibration", level=4),
        Figure(plots.plot_calibration(name, found["curve"]), "predicted against observed share"),
        Table(["what", "figure"], figures),
        Table(["it says", "mean", "observed", "pairs"], rows, folded=True),
    ]


def _length(health: dict) -> list:
    rows = [
        [text, estimate(e, percent="prefer" in key), f"{e['n']:,}"]
        for key, text in LENGTH.items()
        if (e := health["length"].get(key))
    ]
    changes = health["invariance"]["max_difference"]
    spread = health["invariance"]["score_std"]
    asked = [
        [what, f"{change:.2g}", f"{100 * change / spread:.2g} %" if spread else "–"] for what, change in changes.items()
    ]
    return [
        Heading("Length", level=4),
        Table(["what", "figure", "n"], rows),
        Heading("What must not change a score", level=4),
        Table(["what", "largest change", "of its spread"], asked),
    ]


def _scores(name: str, health: dict) -> list:
    histogram = health["scores"]["histogram"]
    edges, sides = histogram["edges"], ("chosen", "rejected")
    bins = zip(edges, edges[1:], *(histogram[side] for side in sides), strict=False)
    columns = ("mean", "std", "p0", "p5", "p25", "p50", "p75", "p95", "p100")
    figure = plots.plot_histograms(name, edges, {side: histogram[side] for side in sides}, "score")
    return [
        Heading("Scores", level=4),
        Figure(figure, "distribution of the scores"),
        Table(["", *columns], [[s, *(number(health["scores"][s][c]) for c in columns)] for s in sides]),
        Table(["from", "to", *sides], [[number(a), number(b), str(m), str(n)] for a, b, m, n in bins], folded=True),
    ]


def _mistakes(health: dict) -> list:
    blocks = [Heading("The worst mistakes", level=4)]
    for m in health["mistakes"]:
        answers = [
            (who, m[side], f"score {m[f'{side}_score']:.2f}")
            for who, side in (("raters prefer", "chosen"), ("model prefers", "rejected"))
        ]
        blocks.append(Said(m["prompt"], answers, "" if m["category"] is None else str(m["category"])))
    return blocks if health["mistakes"] else [*blocks, Text("None.")]
