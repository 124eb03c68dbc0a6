"""The files that every run folder has: manifest, fingerprints, complete checkpoints; read and written in one way."""

import hashlib
import json
from pathlib import Path


def read_manifest(output_dir: str | Path) -> dict | None:
    """The folder's manifest, or None where there is none or it was cut off while being written."""
    try:
        return json.loads((Path(output_dir) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def fingerprint(path: str) -> str:
    """SHA-256 (16 hex digits) over names and contents of a folder's or file's results; the name itself for hub ids.

    Checkpoints, logs, the manifest, the training history, health checks and a run's card are left out: they do not change
    what the next stage reads, and they differ between equal runs.
    """
    root = Path(path)
    if not root.exists():
        return f"hub:{path}"
    finished = (read_manifest(root) or {}).get("output_fingerprint") if root.is_dir() else None
    if finished:
        return finished
    digest = hashlib.sha256()
    written_by_run = {"manifest.json", "trainer_state.json", "evaluation.json", "health.json", "health.md"}
    written_by_run |= {"README.md"} if read_manifest(root) else set()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        relative = file.relative_to(root)
        if str(relative) in written_by_run or relative.parts and relative.parts[0].startswith(("checkpoint-", "logs")):
            continue
        digest.update(str(relative).encode() + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Newest `checkpoint-N` that was written to the end; a save cut off by a kill or a full disk is passed over."""
    steps = sorted(
        (p for p in output_dir.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()),
        key=lambda p: int(p.name.split("-")[-1]),
        reverse=True,
    )
    # Trainer writes trainer_state.json last.
    return next((str(p) for p in steps if _is_json(p / "trainer_state.json")), None)


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_json(path: Path, value: dict) -> None:
    # Written beside and renamed, so that a kill never leaves half a manifest.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=False, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
        return True
    except (OSError, json.JSONDecodeError):
        return False
