"""Runs of one stage side by side: the keys in which they differ, their measures with intervals and p-values, their curves.

Runs that differ only in their seed, and whose inputs were made by runs that do too, form one column: the mean over seeds
with Student's t interval, and Welch's test against the first column. The measures of a single run keep the intervals of its
evaluation; two such columns are compared by a z test for independent samples. Its variances are those of the sides of the
two intervals that face each other (Zou and Donner 2008, Statistics in Medicine 27:1693): intervals near 0 and 1 are
lopsided, and half their length would make 0 and 10 right of 10 differ at 3e-19 (Fisher's exact test: 1e-5; this one: 7e-6).
If both answered the same questions it misses what the paired test finds (`recipes/evaluate.py` with both models under
`models`).
"""

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.comparison.columns import Column, read_columns, sure, without_seeds
from llmrecipes.config import InputError
from llmrecipes.durable import write_text
from llmrecipes.manifest import read_manifest
from llmrecipes.measures import ARROWS, TRAINING, with_arrow
from llmrecipes.metrics import Estimate
from llmrecipes.report.blocks import Figure, Points, Section, Table, Text

APART = (
    "Figures that other questions, texts, judges, rules, baselines or tokenizers decided are not comparable: each has a row "
    "of its own, which says in brackets what decided it."
)


@dataclass
class CompareArguments:
    """Keys of recipes/compare.py."""

    runs: list[str] = field(default_factory=list, metadata={"help": "Folders of finished runs of one stage, two or more."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for compare.html and compare.md."})


def differences(columns: list[Column]) -> dict[str, list]:
    """Key -> its value in each column, for the keys in which columns differ."""
    keys = sorted({key for column in columns for key in without_seeds(column.config)})
    values = {key: [column.config.get(key) for column in columns] for key in keys}
    return {key: v for key, v in values.items() if any(value != v[0] for value in v)}


def summarise(values: list[Estimate | float]) -> Estimate:
    """One run's value, or the mean over runs with its 95 % Student's t interval; n is then the number of runs.

    low and high are NaN for a single run without an interval.
    """
    if len(values) == 1:
        return values[0] if isinstance(values[0], Estimate) else Estimate(values[0], math.nan, math.nan, 1)
    from scipy.special import stdtrit

    plain = _numbers(values)
    if not all(map(math.isfinite, plain)):
        return Estimate(sum(plain) / len(plain), math.nan, math.nan, len(plain))
    middle = statistics.mean(plain)
    side = stdtrit(len(plain) - 1, 0.975) * statistics.stdev(plain) / math.sqrt(len(plain))
    return Estimate(middle, middle - side, middle + side, len(plain))


def _numbers(values: list[Estimate | float]) -> list[float]:
    return [value.value if isinstance(value, Estimate) else value for value in values]


def p_value(values: list[Estimate | float], base: list[Estimate | float]) -> float | None:
    """p-value of the difference between two columns: Welch's test over seeds, or a z test from the intervals of single runs;
    None if there is neither, and of what is true or false."""
    if any(isinstance(value, bool) for value in (*values, *base)):
        return None
    if len(values) > 1 and len(base) > 1:
        from scipy.stats import ttest_ind

        plain = [_numbers(side) for side in (values, base)]
        if all(map(math.isfinite, [*plain[0], *plain[1]])) and any(statistics.stdev(side) for side in plain):
            return float(ttest_ind(*plain, equal_var=False).pvalue)
        return None
    if len(values) == len(base) == 1 and isinstance(values[0], Estimate) and isinstance(base[0], Estimate):
        lower, upper = sorted((values[0], base[0]))  # by their values
        variance = ((lower.high - lower.value) ** 2 + (upper.value - upper.low) ** 2) / 1.959964**2
        if variance > 0:
            return math.erfc((upper.value - lower.value) / math.sqrt(2 * variance))
    return None


def compare(columns: list[Column]) -> list[Section]:
    """The comparison as sections of a page: what was compared, keys, measures, curves."""
    letters = [chr(ord("A") + i % 26) * (1 + i // 26) for i in range(len(columns))]
    points = [f"{letter}: {', '.join(map(str, column.folders))}" for letter, column in zip(letters, columns, strict=True)]
    keys = [
        [key, *(json.dumps(value, ensure_ascii=False) for value in values)] for key, values in differences(columns).items()
    ]
    names = list(dict.fromkeys(name for column in columns for name in column.measures))
    rows = []
    for name in names:
        base, cells = columns[0].measures.get(name), []
        for column in columns:
            values = column.measures.get(name)
            cells.append(_cell(values, column) if values else "–")
            if column is not columns[0]:
                p = p_value(values, base) if values and base else None
                cells.append("–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001")
        rows.append([_with_arrow(name), *cells])
    is_one_seed = all(seeds == columns[0].seeds[0] for column in columns for seeds in column.seeds)
    alike = "None, and the seed is the same." if is_one_seed else "None but seeds."
    tables = _by_model(columns[0]) if len(columns) == 1 else []
    head = ["measure", letters[0], *(cell for letter in letters[1:] for cell in (letter, f"p, {letter} = {letters[0]}"))]
    sections = [
        Section("runs", "Runs", [Points(points)]),
        Section("keys", "Keys that differ", [Table(["key", *letters], keys) if keys else Text(alike)]),
        Section("measures", "Measures", [*(tables or [Table(head, rows)]), *[Text(APART)] * any(" (" in n for n in names)]),
    ]
    curves = [name for name in columns[0].curves if all(len(c.curves.get(name, ())) > 1 for c in columns)]
    if curves:
        from llmrecipes.report.plots import plot_overlaid

        drawn = [
            plot_overlaid(name, {letter: c.curves[name] for letter, c in zip(letters, columns, strict=True)})
            for name in curves
        ]
        sections.append(Section("curves", "Curves", [Figure(drawn, "curves of the runs over their steps")]))
    return sections


def _by_model(column: Column) -> list[Table]:
    """One evaluation over seeds: a table with a row per measure and a column per model, and one of what is of no model;
    nothing for a stage that evaluates no models."""
    models = list(sure(column.config.get("models"), dict))
    found: dict[str, dict] = {}
    rest = []
    for name, values in column.measures.items():
        model, _, measure = name.partition("/")
        cell = _cell(values, column)
        if model in models and measure:
            found.setdefault(measure, {})[model] = cell
        else:
            rest.append([_with_arrow(name), cell])
    rows = [[_with_arrow(measure), *(cells.get(model, "–") for model in models)] for measure, cells in found.items()]
    return [Table(["measure", *models], rows), Table(["measure", "all"], rest)] if len(models) > 1 and rows else []


def _with_arrow(name: str) -> str:
    bare, mark, decider = name.partition(" (")
    measure = bare.rpartition("/")[2]
    arrow = ARROWS[TRAINING[bare].better] if bare in TRAINING else with_arrow(measure).removeprefix(measure)
    return bare + arrow + mark + decider


def _cell(values: list[Estimate | float], column: Column) -> str:
    """Value and interval, or what is true or false and how often; says of how many of the column's runs, unless of all."""
    runs, estimate = len(values), summarise(values)
    if all(isinstance(value, bool) for value in values):
        text = json.dumps(values[0]) if len({*values}) == 1 else f"true in {sum(values)} of {runs}"
    else:
        text = f"{estimate.value:.4g}"
        if not math.isnan(estimate.low):
            text += f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return text if runs == len(column.folders) else f"{text}, {runs} of {len(column.folders)} runs"


def write_comparison(folders: list[str], output_dir: str | None) -> str:
    """The comparison as Markdown; with `output_dir` also written there, compare.md and compare.html."""
    from llmrecipes.report.markdown import render_markdown
    from llmrecipes.report.page import render_page

    if output_dir is not None and not output_dir.strip():
        raise InputError("output_dir: is empty; name a folder, or leave it out")
    if output_dir and read_manifest(output_dir):  # which would then count as changed
        raise InputError(f"output_dir: {output_dir} is a run's folder; name another folder")
    columns = read_columns(folders)
    title = f"{columns[0].stage}: {sum(len(column.folders) for column in columns)} runs"
    summary = "Brackets hold 95 % intervals: over seeds if a column has several, otherwise over the items of the evaluation."
    sections = compare(columns)
    text = render_markdown(title, summary, sections)
    if output_dir:
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            write_text(Path(output_dir) / "compare.md", text)
            write_text(Path(output_dir) / "compare.html", render_page(title, summary, sections))
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(f"output_dir: {output_dir} cannot be written: {error.strerror}; name another folder") from None
    return text
