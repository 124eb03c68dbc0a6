"""What each stage won and lost: its model against the one it started from, by the chain's evaluations."""

from itertools import groupby
from typing import NamedTuple

from llmrecipes.measures import ARROWS, NAMED, is_share
from llmrecipes.metrics import ALPHA
from llmrecipes.report.blocks import Heading, Table, Text
from llmrecipes.report.numbers import estimate, number

MOST_WINS = 3  # clearest wins of a stage named in the opening; all losses are named
RULE = (
    f"Won or lost: * differs on the same questions by McNemar's exact test, p < {ALPHA:g}; without it, each value lies "
    "outside the other's 95 % interval. Measures that may go either way are left out."
)


class Change(NamedTuple):
    """A measure that differs between the model a stage made and the one it started from, both named as in the evaluation.
    before, after: {"value", "low", "high", "n"}; `clear`: their distance in units of the two intervals' widths."""

    model: str
    start: str
    measure: str
    before: dict
    after: dict
    won: bool
    tested: bool
    clear: float

    @property
    def percent(self) -> bool:
        bounded = all(0 <= e["low"] <= e["high"] <= 1 for e in (self.before, self.after))
        return bounded and (is_share(self.measure) or self.measure not in NAMED)

    def __str__(self) -> str:
        values = [e["value"] for e in (self.before, self.after)]
        before, after = (f"{100 * value:.1f}" if self.percent else number(value) for value in values)
        return f"{self.measure} {before} → {after}{' %' * self.percent}{' *' * self.tested}"


def find_changes(records: list) -> list[Change]:
    """Every change of the evaluated models, model by model, losses first and the clearest first; `records` are
    `StageRecord`s in the chain's order."""
    changes = []
    for record in records:
        for start, model in _steps(record, records):
            found = []
            for measure, after in record.scores[model].items():
                before = record.scores[start].get(measure)
                if start == record.baseline and measure in NAMED and NAMED[measure].compares and is_share(measure):
                    before = {"value": 0.5, "low": 0.5, "high": 0.5, "n": after["n"]}  # a model against itself
                better = _better(measure)
                p_values = record.p_values.get({start: model, model: start}.get(record.baseline), {})
                tested = p_values.get(measure, 1.0) < ALPHA
                if before and better and (tested or _apart(before, after)):
                    won = (after["value"] > before["value"]) == (better == "up")
                    widths = sum(e["high"] - e["low"] for e in (before, after)) or 1.0
                    clear = abs(after["value"] - before["value"]) / widths
                    found.append(Change(model, start, measure, before, after, won, tested, clear))
            changes += sorted(found, key=lambda c: (c.won, not c.percent, -c.clear))
    return changes


def _steps(record, records: list) -> list[tuple[str, str]]:
    """(start, model) for each evaluated model: start is what its stage started from, or the baseline for an outside
    model."""
    folders = {name: _folder(path) for name, path in record.manifest.get("config", {}).get("models", {}).items()}
    starts = {_folder(r.path): _folder(r.manifest.get("config", {}).get("model_name_or_path") or "") for r in records}
    steps = []
    for model in record.scores:
        found = record.baseline
        if folders.get(model) in starts:  # trained in this chain
            start = starts[folders[model]]
            found = next((name for name in record.scores if start and folders.get(name) == start), None)
        if found in record.scores and found != model:
            steps.append((found, model))
    return steps


def _folder(path: str) -> str:
    return path.rstrip("/")


def _apart(one: dict, other: dict) -> bool:
    return all(not a["low"] <= b["value"] <= a["high"] for a, b in ((one, other), (other, one)))


def tell_changes(changes: list[Change]) -> dict[str, str]:
    """Model -> a sentence on what its stage won, clearest shares first, and everything it lost."""
    told = {}
    for model in dict.fromkeys(c.model for c in changes):
        own = [c for c in changes if c.model == model]
        won = [c for c in own if c.won]
        more = f" and {len(won) - MOST_WINS} more" if len(won) > MOST_WINS else ""
        won, lost = (", ".join(map(str, some)) or "nothing" for some in (won[:MOST_WINS], [c for c in own if not c.won]))
        told[model] = f"(from {own[0].start}) won {won}{more}; it lost {lost}."
    return told


def changes_table(changes: list[Change]) -> list:
    """All changes, a table for each model."""
    blocks: list = []
    for (model, start), own in groupby(changes, key=lambda c: (c.model, c.start)):
        rows = [
            [
                "won" if c.won else "lost",
                with_better(c.measure),
                estimate(c.before, c.percent),
                estimate(c.after, c.percent) + " *" * c.tested,
            ]
            for c in own
        ]
        blocks += [Heading(f"{model} (from {start})", level=4), Table(["verdict", "measure", "before", "after"], rows)]
    return [*blocks, Text(RULE)] if blocks else []


def _better(measure: str) -> str | None:
    return NAMED[measure].better if measure in NAMED else "up"  # a task's score is its share of right answers


def with_better(measure: str) -> str:
    """`measure` with an arrow in the better direction; tasks are shares of right answers."""
    return measure + ARROWS[_better(measure)]
