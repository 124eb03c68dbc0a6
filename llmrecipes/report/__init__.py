"""The report of a chain: one self-contained HTML file, and the same as Markdown, from what its stages wrote to disk.

Reads manifests, training histories, watch.jsonl, metrics.json and answers.jsonl; runs no model and imports no torch.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.cards.evaluations import baseline_of
from llmrecipes.checkpoints import step_folders
from llmrecipes.config import InputError
from llmrecipes.durable import read_json, write_text
from llmrecipes.formats import read_growing
from llmrecipes.manifest import MANIFEST_FILE, in_order, path_of, runs_below
from llmrecipes.measures import todays_name, under_todays_names
from llmrecipes.report.changes import find_changes
from llmrecipes.report.content import build_sections, open_report
from llmrecipes.report.markdown import render_markdown
from llmrecipes.report.page import render_page


@dataclass
class StageRecord:
    """The results of one finished stage. `history`: Trainer's log entries; `scores`: model -> measure -> estimate; `health`:
    the contents of health.json, a reward model's check; `watched`: rows of watch.jsonl, recorded during training;
    `p_values`: model -> measure -> p of its difference from the model `baseline`; `judged_by`: who judged the answers."""

    name: str
    folder: Path
    manifest: dict
    size: int
    history: list[dict] = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    skipped: dict = field(default_factory=dict)
    answers: list[dict] = field(default_factory=list)
    health: dict = field(default_factory=dict)
    watched: list[dict] = field(default_factory=list)
    baseline: str = ""
    p_values: dict = field(default_factory=dict)
    judged_by: dict = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The folder as named in the chain's configs, wherever it is now."""
        return path_of(self.folder, self.manifest)


def write_report(output_dir: str | Path, title: str = "", names: list[str] | None = None) -> Path:
    """Writes `output_dir`/report.html and report.md about the finished stages below it and prints their paths; returns that
    of report.html.

    title: by default, "Report: " and the folder's name. names: the stages in order; by default, every folder with a
    manifest, ordered by finishing time. A stage comes after those it reads from, even if copying has changed the times.

    Raises:
        InputError: there is no finished stage in `output_dir`.
    """
    output_dir, started = Path(output_dir), time.monotonic()
    folders = runs_below(output_dir) if names is None else in_order(output_dir / name for name in names)
    records = [record for folder in folders if (record := read_stage(folder))]
    if not records:
        raise InputError(f"{output_dir}: holds no finished stage to report on; run the chain first")
    changes, title = find_changes(records), title or f"Report: {output_dir.resolve().name}"
    opening, sections = open_report(records, changes), build_sections(records, changes)
    write_text(output_dir / "report.md", render_markdown(title, opening, sections))
    write_text(output_dir / "report.html", render_page(title, opening, sections))
    print(f"Report built in {time.monotonic() - started:.1f} s; for terminals and pull requests: {output_dir / 'report.md'}")
    print(f"As a page: {output_dir / 'report.html'}", flush=True)
    return output_dir / "report.html"


def read_stage(folder: Path) -> StageRecord | None:
    """The finished run in `folder`, or None if there is none."""
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("status") != "finished":
        return None
    metrics = read_json(folder / "metrics.json")
    tasks, p_values = metrics.get("tasks", []), metrics.get("p_values", {})
    return StageRecord(
        folder.name,
        folder,
        manifest,
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not _of_checkpoint(p, folder)),
        read_history(folder),
        {name: under_todays_names(scores, tasks) for name, scores in metrics.get("models", {}).items()},
        tasks,
        metrics.get("skipped", {}),
        read_growing(folder / "answers.jsonl"),
        read_json(folder / "health.json"),
        read_growing(folder / "watch.jsonl"),
        baseline_of(metrics, manifest),
        {name: {m if m in tasks else todays_name(m): p for m, p in tests.items()} for name, tests in p_values.items()},
        metrics.get("judged_by", {}),
    )


def read_history(folder: Path) -> list[dict]:
    """Finite numbers that a trainer logged, by step; from the run itself, or else from its last checkpoint."""
    states = [read_json(f / "trainer_state.json") for f in [folder, *step_folders(folder)]]
    history = next(filter(None, (state.get("log_history") for state in states)), [])
    return [
        {k: v for k, v in entry.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        for entry in history
        if "step" in entry
    ]


def _of_checkpoint(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0].startswith("checkpoint-")
