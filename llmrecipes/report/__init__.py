"""The report of a chain: one self-contained HTML file from what its stages left on disk.

Reads manifests, training histories, metrics.json and answers.jsonl; runs no model and imports no torch.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.report.page import build_page

CHECKPOINTS = "checkpoint-*"


@dataclass
class StageRecord:
    """What one finished stage left behind. `history`: Trainer's log entries; `scores`: model -> measure -> estimate;
    `health`: what health.json holds, the check of a reward model."""

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


def write_report(output_dir: str | Path, title: str, names: list[str] | None = None) -> Path:
    """Write `output_dir`/report.html about the finished stages below it and return its path.

    names: the stages in order; without them, every folder that holds a manifest, by the time it was finished.

    Raises:
        InputError: no finished stage lies in `output_dir`.
    """
    output_dir = Path(output_dir)
    if names is None:
        manifests = sorted(output_dir.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        names = [path.parent.name for path in manifests]
    records = [record for name in names if (record := read_stage(output_dir / name))]
    if not records:
        raise InputError(f"{output_dir}: holds no finished stage to report on; run the chain first")
    path = output_dir / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(build_page(title, records), encoding="utf-8")
    temporary.replace(path)
    return path


def read_stage(folder: Path) -> StageRecord | None:
    """The finished run in `folder`, or None where there is none."""
    manifest = _read(folder / "manifest.json")
    if manifest.get("status") != "finished":
        return None
    metrics = _read(folder / "metrics.json")
    answers = folder / "answers.jsonl"
    return StageRecord(
        folder.name,
        folder,
        manifest,
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not _of_checkpoint(p, folder)),
        read_history(folder),
        metrics.get("models", {}),
        metrics.get("tasks", []),
        metrics.get("skipped", {}),
        [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()] if answers.exists() else [],
        _read(folder / "health.json"),
    )


def read_history(folder: Path) -> list[dict]:
    """Finite numbers that a trainer logged, by step; from the run itself, else from its last checkpoint."""
    states = [folder / "trainer_state.json"]
    states += sorted(folder.glob(f"{CHECKPOINTS}/trainer_state.json"), key=lambda path: -path.stat().st_mtime)
    history = next((log for path in states if (log := _read(path).get("log_history"))), [])
    return [
        {k: v for k, v in entry.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        for entry in history
        if "step" in entry
    ]


def _of_checkpoint(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0].startswith("checkpoint-")


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
