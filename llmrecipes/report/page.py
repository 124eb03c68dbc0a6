"""The page itself: sections of figures and their tables. Everything that comes from a file or a model is escaped.

The page holds no script, and its Content-Security-Policy forbids any, as well as every request.
"""

import math
from html import escape
from pathlib import PurePath

from llmrecipes.cards import scrub
from llmrecipes.formats import prompt_text
from llmrecipes.metrics import SHARES
from llmrecipes.report import plots
from llmrecipes.report.health import build_health
from llmrecipes.report.tables import details, duration, estimate, number, size, table

CURVES = ("loss", "eval_loss", "perplexity", "accuracy", "margin", "rewards/accuracies", "rewards/margins", "score",
          "kl", "kl_coef", "entropy", "response_length", "eos_rate", "win_rate", "explained_variance",
          "mean_token_accuracy", "grad_norm", "learning_rate")  # fmt: skip
# What a reward model's health is read from; whichever stage measured it.
HEALTH = {
    "eval_accuracy": "held-out pairs ordered right",
    "eval_margin": "mean margin, chosen minus rejected",
    "eval_mean_reward": "mean reward (near 0: centred)",
    "eval_min_reward": "lowest reward",
    "eval_max_reward": "highest reward",
    "eval_test_loss": "held-out loss",
    "eval_test_gold_loss": "held-out loss, noise-free pairs",
    "agreement": "raters' agreement on pairs",
    "kendall_tau": "raters' Kendall tau-b",
}
NUM_QUESTIONS = 12
STYLE = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--good:#2a8a4a;--bad:#c0392b}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem;background:Canvas;color:CanvasText}
h1{font-size:1.6rem;overflow-wrap:anywhere}h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
svg{width:100%;height:auto;max-width:54rem;display:block}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:left;vertical-align:top}th{white-space:nowrap}
td.n{text-align:right;white-space:nowrap}nav{display:flex;flex-wrap:wrap;gap:.1rem .8rem}
code{overflow-wrap:anywhere;font-size:.85em}
summary{cursor:pointer;opacity:.75;font-size:.9rem}.met{color:var(--good)}.missed{color:var(--bad)}
.said{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;margin:.8rem 0;background:var(--soft)}
.said p{margin:.2rem 0;overflow-wrap:anywhere;white-space:pre-wrap}.said dl{display:grid;margin:0;gap:.2rem .8rem;
grid-template-columns:max-content 1fr}.said dt{font-weight:600}.said dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
.kind{opacity:.7;font-size:.8rem}
@media(max-width:480px){body{padding:.6rem;font-size:15px}.said dl{grid-template-columns:1fr}}
@media print{:root{color-scheme:light}nav{display:none}svg,.said,tr{break-inside:avoid}details:not([open])>*{display:block}}
"""


def build_page(title: str, records: list) -> str:
    """The whole page as HTML; `records` are `StageRecord`s in the chain's order."""
    sections = [
        ("stages", "The stages", _stages(records)),
        ("expected", "Expected against got", _expected(records)),
        ("curves", "How each stage learned", _curves(records)),
        ("abilities", "Abilities by stage", _abilities(records)),
        ("behaviour", "Behaviour by stage", _behaviour(records)),
        ("answers", "The same questions, answered by each model", _answers(records)),
        ("reward", "Health of the reward model", _health(records)),
        ("data", "Where the data came from", _data(records)),
        ("made", "What it was made with", _made(records)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    body = "".join(f'<section><h2 id="{key}">{escape(name)}</h2>{html}</section>' for key, name, html in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{_summary(records)}</p><nav>{links}</nav>{body}</body></html>\n"
    )


def _summary(records: list) -> str:
    seconds = sum(r.manifest.get("wall_seconds", 0) for r in records)
    last = records[-1].manifest
    return escape(
        f"{len(records)} stages, {duration(seconds)} of work, {size(sum(r.size for r in records))} of results; "
        f"commit {last.get('commit') or 'unknown'}; {_hardware(last)}."
    )


def _stages(records: list) -> str:
    number = {_path_of(r): i for i, r in enumerate(records)}
    edges = sorted(
        {
            (number[p], i)
            for i, r in enumerate(records)
            for p in r.manifest.get("inputs", {})
            if p in number and number[p] < i
        }
    )
    boxes = [(r.name, f"{duration(r.manifest.get('wall_seconds', 0))} · {size(r.size)}") for r in records]
    rows = [
        [r.name, r.manifest.get("made", ""), ", ".join(records[a].name for a, b in edges if b == i) or "-",
         duration(r.manifest.get("wall_seconds", 0)), size(r.size)]
        for i, r in enumerate(records)
    ]  # fmt: skip
    return plots.plot_stages(boxes, edges) + table(["stage", "made", "reads", "time", "size"], rows)


def _expected(records: list) -> str:
    rows = [
        [r.name, name, f"{v['expected']:g} ± {v['tolerance']:g}", number(v["got"]), v["verdict"]]
        for r in records
        for name, v in (r.manifest.get("expected") or {}).items()
    ]
    if not rows:
        return "<p>The recipes name no expected figures.</p>"
    return table(["stage", "measure", "expected", "got", "verdict"], rows)


def _curves(records: list) -> str:
    html = ""
    for record in records:
        curves = _series(record.history)
        if not curves:
            continue
        steps = sorted({step for points in curves.values() for step, _ in points})
        columns = {name: dict(points) for name, points in curves.items()}
        rows = [[str(step), *(number(columns[name].get(step)) for name in curves)] for step in steps]
        html += f"<h3>{escape(record.name)}</h3>{plots.plot_curves(record.name, curves)}"
        html += details(table(["step", *curves], rows))
    return html


def _series(history: list[dict]) -> dict[str, list]:
    """measure -> [(step, value)], for the measures a reader looks for first."""
    curves = {}
    watched = sorted({name for entry in history for name in entry if name.startswith("watch/")})
    for name in [*CURVES, *watched]:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if len(points) > 1:
            curves[name] = points
    if "loss" in curves and not any(name in curves for name in ("score", "margin", "accuracy", "rewards/accuracies")):
        curves["perplexity"] = [(step, math.exp(min(loss, 50))) for step, loss in curves["loss"]]
    return {name: curves[name] for name in [*CURVES, *watched] if name in curves}


def _abilities(records: list) -> str:
    html = ""
    for record in (r for r in records if r.scores and r.tasks):
        html += _estimates(record, [task for task in record.tasks if any(task in s for s in record.scores.values())])
    return html


def _behaviour(records: list) -> str:
    html = ""
    for record in (r for r in records if r.scores):
        measures = list(dict.fromkeys(m for s in record.scores.values() for m in s if m not in record.tasks))
        shares = [m for m in measures if _is_share(record, m)]
        html += _estimates(record, shares, "shares") if shares else ""
        rest = [m for m in measures if m not in shares]
        html += _score_table(record, rest) if rest else ""
        html += "".join(f"<p>Not measured: {escape(k)} ({escape(str(why))}).</p>" for k, why in record.skipped.items())
    return html


def _is_share(record, measure: str) -> bool:
    """Shares have intervals within [0, 1] for every model and are called as such by the table of the evaluation."""
    found = [scores[measure] for scores in record.scores.values() if measure in scores]
    return measure in SHARES and all(0 <= e["low"] <= e["high"] <= 1 for e in found)


def _estimates(record, measures: list[str], kind: str = "abilities") -> str:
    models = list(record.scores)
    values = {m: [record.scores[name].get(m) for name in models] for m in measures}
    return plots.plot_estimates(f"{record.name} {kind}", models, values) + _score_table(record, measures, percent=True)


def _score_table(record, measures: list[str], percent: bool = False) -> str:
    models, rows = list(record.scores), []
    for measure in measures:
        estimates = [record.scores[name].get(measure) for name in models]
        n = next((e["n"] for e in estimates if e), "")
        rows.append([measure, *(estimate(e, percent) for e in estimates), str(n)])
    return table(["measure", *models, "n"], rows) + "<p class=kind>Brackets: 95 % interval.</p>"


def _answers(records: list) -> str:
    html = ""
    for record in (r for r in records if r.answers):
        by_kind: dict = {}
        for row in record.answers:
            by_kind.setdefault(str(row.get("kind", "")), []).append(row)
        turns = max(map(len, by_kind.values()))
        order = [row for turn in range(turns) for rows in by_kind.values() for row in rows[turn : turn + 1]]
        for row in order[:NUM_QUESTIONS]:
            said = "".join(
                f"<dt>{escape(model)}</dt><dd>{escape(text) or '<i>(nothing)</i>'}{_gold(row, model)}</dd>"
                for model, text in row["answers"].items()
            )
            kind = f' <span class="kind">{escape(str(row["kind"]))}</span>' if row.get("kind") else ""
            html += f'<div class="said"><p><b>{escape(prompt_text(row["prompt"]))}</b>{kind}</p><dl>{said}</dl></div>'
        total = len(record.answers)
        html += f"<p>{min(NUM_QUESTIONS, total)} of {total:,} questions; all are in {escape(record.name)}/answers.jsonl.</p>"
    return html


def _gold(row: dict, model: str) -> str:
    gold = row.get("judged", {}).get(model, {}).get("gold")
    return "" if gold is None else f' <span class="kind">score {gold:.2f}</span>'


def _health(records: list) -> str:
    rows = [
        [r.name, text, number(r.manifest["metrics"][name])]
        for r in records
        for name, text in HEALTH.items()
        if isinstance(r.manifest.get("metrics", {}).get(name), (int, float))
    ]
    html = table(["stage", "what", "figure"], rows) if rows else ""
    return html + "".join(build_health(r.name, r.health) for r in records if r.health)


def _data(records: list) -> str:
    html, rows = "", []
    for record in records:
        sources = record.manifest.get("config", {}).get("datasets") or []
        weights = [source.get("weight") for source in sources]
        shares = {}
        if len(sources) > 1 and all(weights):
            shares = {_source(s): s["weight"] / sum(weights) for s in sources}
            html += f"<h3>{escape(record.name)}</h3>{plots.plot_shares(record.name, shares)}"
        rows += [
            [record.name, _source(s), s.get("split") or "", f"{100 * shares[_source(s)]:.1f} %" if shares else "all"]
            for s in sources
        ]
    return html + (table(["stage", "source", "split", "share"], rows) if rows else "")


def _source(source: dict) -> str:
    path = source["path"]
    path = "/".join(PurePath(path).parts[-2:]) if PurePath(path).is_absolute() else path
    return " ".join(filter(None, [path, source.get("name")]))


def _made(records: list) -> str:
    rows = [
        [r.name, scrub(r.manifest.get("command", "")),
         r.manifest.get("commit") or "unknown", r.manifest.get("fingerprint") or "",
         _hardware(r.manifest)]
        for r in records
    ]  # fmt: skip
    versions: dict = {}
    for record in records:
        for package, version in record.manifest.get("packages", {}).items():
            versions.setdefault(package, {})[str(version)] = None
    return table(["stage", "command", "commit", "fingerprint", "hardware"], rows) + table(
        ["package", "version"], [[name, ", ".join(found)] for name, found in versions.items()]
    )


def _hardware(manifest: dict) -> str:
    found = manifest.get("hardware", {})
    accelerators = found.get("accelerators") or []
    return f"{found.get('cores', '?')} cores ({found.get('cpu', '?')}), " + (", ".join(accelerators) or "no accelerator")


def _path_of(record) -> str:
    return record.manifest.get("config", {}).get("output_dir", str(record.folder))
