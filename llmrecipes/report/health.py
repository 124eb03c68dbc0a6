"""The section of the report on a reward model's health check: figures from health.json, each with its table."""

from html import escape

from llmrecipes.report import plots
from llmrecipes.report.tables import details, estimate, number, table

GROUPS = {
    "by_set": "set",
    "by_margin": "margin",
    "by_length_gap": "length gap in tokens, chosen minus rejected",
    "by_category": "category",
}
LENGTH = {
    "score_correlation": "rank correlation of score and length, all responses",
    "pair_correlation": "the same of the differences within pairs",
    "model_prefers_longer": "the model prefers the longer answer",
    "raters_prefer_longer": "the raters prefer the longer answer",
    "bias": "the model more than the raters",
}


def build_health(name: str, health: dict) -> str:
    """HTML of the check of stage `name`; what a check did not get to is left out."""
    mark = {"healthy": "met", "unhealthy": "missed"}.get(health.get("verdict"), "")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in health.get("reasons", []))
    html = f'<h3>{escape(name)}: <span class="{mark}">{escape(str(health.get("verdict")))}</span></h3>'
    html += f"<ul>{reasons}</ul>" if reasons else ""
    if "accuracy" not in health:
        return html
    html += (f"<p>{health['num_pairs']:,} held-out pairs of {health['num_prompts']:,} prompts; "
             f"{health['left_out']:,} too long. Brackets: 95 % interval.</p>")  # fmt: skip
    for key, title in GROUPS.items():
        if health[key]:
            html += f"<h4>Accuracy by {title}</h4>"
            html += plots.plot_estimates(f"{name} {key}", ["accuracy"], {g: [e] for g, e in health[key].items()})
            rows = [[group, estimate(e, percent=True), f"{e['n']:,}"] for group, e in health[key].items()]
            html += details(table([title, "accuracy", "pairs"], rows))
    return html + _calibration(name, health["calibration"]) + _length(health) + _scores(name, health) + _mistakes(health)


def _calibration(name: str, found: dict) -> str:
    rows = [
        [f"{100 * b['from']:.0f} to {100 * b['to']:.0f} %", f"{100 * b['predicted']:.1f} %",
         estimate(b["observed"], percent=True), f"{b['observed']['n']:,}"]
        for b in found["curve"]
    ]  # fmt: skip
    figures = [
        ["expected calibration error", number(found["error"])],
        ["temperature (1: calibrated, above: overconfident)", number(found["temperature"]) or "none fits"],
        ["error with the temperature of the other half", number(found["error_with_temperature"]) or "–"],
    ]
    html = "<h4>Calibration</h4>" + plots.plot_calibration(name, found["curve"]) + table(["what", "figure"], figures)
    return html + details(table(["it says", "mean", "observed", "pairs"], rows))


def _length(health: dict) -> str:
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
    html = "<h4>Length</h4>" + table(["what", "figure", "n"], rows)
    return html + "<h4>What must not change a score</h4>" + table(["what", "largest change", "of its spread"], asked)


def _scores(name: str, health: dict) -> str:
    histogram = health["scores"]["histogram"]
    edges, sides = histogram["edges"], ("chosen", "rejected")
    html = "<h4>Scores</h4>"
    html += plots.plot_histograms(name, edges, {side: histogram[side] for side in sides}, "score")
    bins = zip(edges, edges[1:], *(histogram[side] for side in sides), strict=False)
    columns = ("mean", "std", "p0", "p5", "p25", "p50", "p75", "p95", "p100")
    html += table(["", *columns], [[s, *(number(health["scores"][s][c]) for c in columns)] for s in sides])
    return html + details(table(["from", "to", *sides], [[number(a), number(b), str(m), str(n)] for a, b, m, n in bins]))


def _mistakes(health: dict) -> str:
    html = "<h4>The worst mistakes</h4>" + ("" if health["mistakes"] else "<p>None.</p>")
    for m in health["mistakes"]:
        category = f' <span class="kind">{escape(str(m["category"]))}</span>' if m["category"] is not None else ""
        said = "".join(
            f'<dt>{who}</dt><dd>{escape(m[side])} <span class="kind">score {m[f"{side}_score"]:.2f}</span></dd>'
            for who, side in (("raters", "chosen"), ("model", "rejected"))
        )
        html += f'<div class="said"><p><b>{escape(m["prompt"])}</b>{category}</p><dl>{said}</dl></div>'
    return html
