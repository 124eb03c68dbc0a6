"""The content of the report: sections of figures and their tables, from what the stages wrote to disk."""

import math
from pathlib import PurePath

from llmrecipes.cards.evaluations import describe_evaluation
from llmrecipes.cards.names import hide_paths
from llmrecipes.formats import prompt_text
from llmrecipes.measures import PREFERENCES, TRAINING, is_share
from llmrecipes.metrics import ALPHA, describe_tests
from llmrecipes.report import plots
from llmrecipes.report.blocks import Figure, Flow, Heading, Said, Section, Table, Text
from llmrecipes.report.changes import Change, changes_table, tell_changes, with_better
from llmrecipes.report.health import build_health
from llmrecipes.report.numbers import duration, estimate, evenly_spaced, number, size, sparkline

NOT_LANGUAGE = ("score", "margin", "accuracy", "rewards/accuracies")  # their loss is not a text's NLL
NUM_QUESTIONS, NUM_WATCHED = 12, 6


def build_sections(records: list, changes: list[Change]) -> list[Section]:
    """The sections that are not empty; `records` are `StageRecord`s in the chain's order."""
    sections = [
        Section("stages", "The stages", _stages(records)),
        Section("expected", "Expected against got", _expected(records)),
        Section("changes", "Won and lost by stage", changes_table(changes)),
        Section("abilities", "Abilities by stage", _abilities(records)),
        Section("behaviour", "Behaviour by stage", _behaviour(records)),
        Section("reward", "Health of the reward model", _health(records), folded=True),
        Section("answers", "The same questions, answered by each model", _answers(records), folded=True),
        Section("watched", "Answers and abilities of each model during training", _watched(records), folded=True),
        Section("curves", "How each stage learned", _curves(records), folded=True),
        Section("data", "Where the data came from", _data(records), folded=True),
        Section("made", "What it was made with", _made(records), folded=True),
    ]
    return [section for section in sections if section.blocks]


def open_report(records: list, changes: list[Change]) -> list[Text]:
    """What a reader must know first: gains and losses, missed expectations, reward health, cost."""
    if any(len(r.scores) > 1 for r in records):
        opening = [Text(told, model) for model, told in tell_changes(changes).items()]
        opening = opening or [Text("no model differs from the one it started from by more than chance.", "Won or lost:")]
    else:
        opening = [Text("not measured, no evaluation compares the models of this chain.", "Won or lost:")]
    expected = [(r.name, name, v) for r in records for name, v in (r.manifest.get("expected") or {}).items()]
    missed = [
        f"{stage} {name} {number(v['got'])} (expected {v['expected']:g} ± {v['tolerance']:g})"
        for stage, name, v in expected
        if v["verdict"] != "met"
    ]
    if expected:
        told = f"; missed: {', '.join(missed)}" if missed else ""
        opening.append(Text(f"{len(expected) - len(missed)} of {len(expected)} figures met{told}.", "Expected:"))
    for record in (r for r in records if r.health):
        right = f"orders {estimate(record.health.get('accuracy'), percent=True)} of held-out pairs correctly"
        told = [str(record.health.get("verdict")), *record.health.get("reasons", []), right]
        opening.append(Text(f"{record.name} is {'; '.join(told)}.", "Reward model:"))
    seconds = sum(r.manifest.get("wall_seconds", 0) for r in records)
    last, tested = records[-1].manifest, any(change.tested for change in changes)
    cost = (
        f"{len(records)} stages took {duration(seconds)} on {_hardware(last)} and left {size(sum(r.size for r in records))};"
        f" commit {last.get('commit') or 'unknown'}. Below, brackets hold 95 % intervals, arrows show which way is better"
        + (f"; * differs on the same questions (McNemar's exact test, p < {ALPHA:g})." if tested else ".")
    )
    return [*opening, Text(cost, "Cost:")]


def _stages(records: list) -> list:
    place = {r.path: i for i, r in enumerate(records)}
    reads = [sorted(place[p] for p in r.manifest.get("inputs", {}) if place.get(p, i) < i) for i, r in enumerate(records)]
    depth: list[int] = []
    for own in reads:
        depth.append(1 + max((depth[i] for i in own), default=-1))
    steps: list[list] = [[] for _ in range(max(depth) + 1)]
    rows = []
    for i, r in enumerate(records):
        read, time = ", ".join(records[a].name for a in reads[i]), duration(r.manifest.get("wall_seconds", 0))
        steps[depth[i]].append((r.name, [f"{time} · {size(r.size)}", *([f"from {read}"] if read else [])]))
        plan = r.manifest.get("plan")
        planned = [f"{plan['peak_gib']:.3g} GiB", f"{plan['flops']:.1e}" if plan["flops"] else "-"] if plan else ["-", "-"]
        rows.append([r.name, r.manifest.get("made", ""), read or "-", time, size(r.size), *planned])
    columns = ["stage", "made", "reads", "time", "size", "planned peak of a GPU", "planned FLOPs"]
    return [Flow(steps), Table(columns, rows, folded=True)]


def _expected(records: list) -> list:
    rows = [
        [r.name, name, f"{v['expected']:g} ± {v['tolerance']:g}", number(v["got"]), v["verdict"]]
        for r in records
        for name, v in (r.manifest.get("expected") or {}).items()
    ]
    if not rows:
        return [Text("The recipes name no expected figures.")]
    return [Table(["stage", "measure", "expected", "got", "verdict"], rows)]


def _curves(records: list) -> list:
    blocks = []
    for record in records:
        curves = _series(record.history)
        if not curves:
            continue
        steps = sorted({step for points in curves.values() for step, _ in points})
        columns = {name: dict(points) for name, points in curves.items()}
        rows = [[str(step), *(number(columns[name].get(step)) for name in curves)] for step in steps]
        short = [
            [name, sparkline(values), number(values[0]), number(values[-1]), number(min(values)), number(max(values))]
            for name, values in ((name, [value for _, value in points]) for name, points in curves.items())
        ]
        in_short = Table(["measure", "course", "first", "last", "lowest", "highest"], short)
        blocks += [
            Heading(record.name),
            Figure(plots.plot_curves(record.name, curves), f"curves of {record.name}"),
            Table(["step", *curves], rows, folded=True, short=in_short),
        ]
    return blocks


def _series(history: list[dict]) -> dict[str, list]:
    """measure -> [(step, value)], for the most important measures."""
    curves = {}
    for name in TRAINING:
        points = {entry["step"]: entry[name] for entry in history if name in entry}  # the last value of each step
        if len(points) > 1:
            curves[name] = list(points.items())
    if "loss" in curves and not any(name in entry for entry in history for name in NOT_LANGUAGE):
        curves["perplexity"] = [(step, math.exp(min(loss, 50))) for step, loss in curves["loss"]]
    return {name: curves[name] for name in TRAINING if name in curves}


def _watched(records: list) -> list:
    """From watch.jsonl: ability curves with their intervals, and answers to the fixed prompts over time."""
    blocks = []
    for record in (r for r in records if r.watched):
        blocks.append(Heading(record.name))
        tasks = list(dict.fromkeys(task for row in record.watched for task in row.get("scores", {})))
        if tasks:
            curves = {
                task: [(row["step"], row["scores"][task]) for row in record.watched if task in row.get("scores", {})]
                for task in tasks
            }
            rows = [
                [str(row["step"]), *(estimate(row.get("scores", {}).get(task), percent=True) for task in tasks)]
                for row in record.watched
            ]
            n = ", ".join(sorted({str(e["n"]) for points in curves.values() for _, e in points}))
            figure = plots.plot_estimate_curves(record.name, curves)
            blocks += [
                Figure(figure, f"abilities of {record.name} over its steps"),
                Table(["step", *tasks], rows, folded=True),
                Text(f"Over optimizer steps, in percent; the band is the 95 % interval, n = {n}."),
            ]
        if "win_rate" in tasks:
            blocks.append(Text(f"win_rate: {TRAINING['win_rate'].meaning}."))
        shown = evenly_spaced(record.watched, NUM_WATCHED)
        for prompt in dict.fromkeys(prompt for row in shown for prompt in row.get("answers", {})):
            answers = [(f"step {row['step']}", row["answers"][prompt], "") for row in shown if prompt in row["answers"]]
            blocks.append(Said(prompt, answers, columns=False))
        blocks.append(Text(f"{len(shown)} of {len(record.watched)} rows; all are in {record.name}/watch.jsonl."))
    return blocks


def _abilities(records: list) -> list:
    blocks = []
    for record, heading in _headed([r for r in records if r.scores and r.tasks]):
        tasks = [task for task in record.tasks if any(task in s for s in record.scores.values())]
        blocks += heading + _estimates(record, tasks)
    return blocks


def _behaviour(records: list) -> list:
    blocks = []
    for record, heading in _headed([r for r in records if r.scores]):
        measures = list(dict.fromkeys(m for s in record.scores.values() for m in s if m not in record.tasks))
        line = describe_evaluation(measures, {"baseline": record.baseline, "judged_by": record.judged_by})
        blocks += (heading if measures or record.skipped else []) + ([Text(line.replace("`", ""))] if line else [])
        shares = [m for m in measures if _is_share(record, m)]
        blocks += _estimates(record, shares, "shares") if shares else []
        rest = [m for m in measures if m not in shares]
        blocks += _score_table(record, rest) if rest else []
        blocks += [Text(f"Not measured: {name} ({why}).") for name, why in record.skipped.items()]
    return blocks


def _headed(records: list) -> list[tuple]:
    """Each record with a heading that distinguishes it from the others, if there are several."""
    return [(record, [Heading(record.name)] if len(records) > 1 else []) for record in records]


def _is_share(record, measure: str) -> bool:
    """Whether a measure is a share: the table of measures says so, and all models' intervals are within [0, 1]."""
    found = [scores[measure] for scores in record.scores.values() if measure in scores]
    return is_share(measure) and all(0 <= e["low"] <= e["high"] <= 1 for e in found)


def _estimates(record, measures: list[str], kind: str = "abilities") -> list:
    drawn = []
    for measure in measures:
        values = {model: scores[measure] for model, scores in record.scores.items() if measure in scores}
        drawn.append(plots.plot_estimates(f"{record.name} {kind}", values, with_better(measure), small=True))
    figure = Figure(drawn, f"{kind} of each model with 95 % intervals, in percent")
    return [figure, *_score_table(record, measures, percent=True)]


def _score_table(record, measures: list[str], percent: bool = False) -> list:
    models, rows = list(record.scores), []
    for measure in measures:
        estimates = [record.scores[name].get(measure) for name in models]
        counts = {e["n"] for e in estimates if e}
        p_values = [record.p_values.get(name, {}).get(measure, 1.0) for name in models]
        cells = [estimate(e, percent) + (" *" if p < ALPHA else "") for e, p in zip(estimates, p_values, strict=True)]
        # A judge may have left out more answers of one model than of another.
        rows.append([with_better(measure), *cells, "–".join(map(str, sorted({min(counts), max(counts)})))])
    tested = any(measure in p_values for measure in measures for p_values in record.p_values.values())
    note = f" {describe_tests(record.baseline, record.p_values)}." if tested else ""
    return [Table(["measure", *models, "n"], rows), Text(f"Brackets: 95 % interval.{note}")]


def _answers(records: list) -> list:
    blocks = []
    for record, heading in _headed([r for r in records if r.answers]):
        blocks += heading
        by_kind: dict = {}
        for row in record.answers:
            by_kind.setdefault(str(row.get("kind") or ""), []).append(row)
        turns = max(map(len, by_kind.values()))
        order = [row for turn in range(turns) for rows in by_kind.values() for row in rows[turn : turn + 1]]
        for row in order[:NUM_QUESTIONS]:
            said = [(model, text, _gold(row, model)) for model, text in row["answers"].items()]
            blocks.append(Said(prompt_text(row["prompt"]), said, str(row.get("kind") or "")))
        shown, total = min(NUM_QUESTIONS, len(order)), len(order)
        blocks.append(Text(f"{shown} of {total:,} questions; all are in {record.name}/answers.jsonl."))
    return blocks


def _gold(row: dict, model: str) -> str:
    gold = row.get("judged", {}).get(model, {}).get("gold")
    return "" if gold is None else f"score {gold:.2f}"


def _health(records: list) -> list:
    rows = [
        [r.name, about.meaning, number(r.manifest["metrics"][name])]
        for r in records
        for name, about in PREFERENCES.items()
        if isinstance(r.manifest.get("metrics", {}).get(name), (int, float))
    ]
    blocks = [Table(["stage", "what", "figure"], rows)] if rows else []
    return blocks + [block for r in records if r.health for block in build_health(r.name, r.health)]


def _data(records: list) -> list:
    blocks, rows = [], []
    for record in records:
        sources = record.manifest.get("config", {}).get("datasets") or []
        read = record.manifest.get("corpus")
        if read:
            blocks += _read(record.name, read)
            continue
        weights = [source.get("weight") for source in sources]
        shares = {}
        if len(sources) > 1 and all(weights):
            shares = {_source(s): s["weight"] / sum(weights) for s in sources}
            blocks += [Heading(record.name), Figure(plots.plot_shares(record.name, shares), f"data of {record.name}")]
        rows += [
            [record.name, _source(s), s.get("split") or "", f"{100 * shares[_source(s)]:.1f} %" if shares else "all"]
            for s in sources
        ]
    return blocks + ([Table(["stage", "source", "split", "share"], rows)] if rows else [])


def _read(stage: str, sources: list[dict]) -> list:
    """What pretraining has read from each source, as counted."""
    rows = [
        [
            s["source"],
            f"{100 * s['share']:.2f} %",
            f"{s['tokens']:,}",
            f"{s['epochs']:.2f}",
            f"{s['unique_tokens']:,} of {s['of_tokens']:,}",
            f"{'–' if s['documents'] is None else format(s['documents'], ',')} of {s['of_documents']:,}",
        ]
        for s in sources
    ]
    shares = {s["source"]: s["share"] for s in sources}
    figure = [Figure(plots.plot_shares(stage, shares), f"data of {stage}")] if len(sources) > 1 else []
    table = Table(["source", "share of tokens", "tokens read", "epochs", "different tokens", "documents"], rows)
    return [Heading(stage), *figure, table]


def _source(source: dict) -> str:
    path = source["path"]
    path = "/".join(PurePath(path).parts[-2:]) if PurePath(path).is_absolute() else path
    return " ".join(filter(None, [path, source.get("name")]))


def _made(records: list) -> list:
    rows = [
        [
            r.name,
            hide_paths(r.manifest.get("command", "")),
            r.manifest.get("commit") or "unknown",
            r.manifest.get("fingerprint") or "",
            _hardware(r.manifest),
        ]
        for r in records
    ]
    versions: dict = {}
    for record in records:
        for package, version in record.manifest.get("packages", {}).items():
            versions.setdefault(package, {})[str(version)] = None
    return [
        Table(["stage", "command", "commit", "fingerprint", "hardware"], rows),
        Table(["package", "version"], [[name, ", ".join(found)] for name, found in versions.items()]),
    ]


def _hardware(manifest: dict) -> str:
    found = manifest.get("hardware", {})
    accelerators = found.get("accelerators") or []
    return f"{found.get('cores', '?')} cores ({found.get('cpu', '?')}), " + (", ".join(accelerators) or "no accelerator")
