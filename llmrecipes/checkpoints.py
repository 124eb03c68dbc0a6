"""Complete checkpoints: the last file written, the seal, lists all others with size and digest, and the run they belong
to."""

import hashlib
import json
import shutil
from pathlib import Path

from llmrecipes.durable import file_digest, fsync_file, fsync_folder, write_json
from llmrecipes.formats import read_growing

SEAL = "checksums.json"
GROWING = ("watch.jsonl", "completions/train.jsonl")  # rows {step, ...} that training appends to, in the run's folder


def step_folders(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-N`, newest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The optimizer step of a checkpoint's folder, `checkpoint-STEP`."""
    return int(folder.name.removeprefix("checkpoint-"))


def seal_checkpoint(folder: Path, run: str, **facts) -> None:
    """Seals `folder`: flushes all its files to disk, then writes the list of them atomically."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (SEAL, "checksums.tmp")):
        fsync_file(path)
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, file_digest(path)]
    seal = {"run": run, **facts, "files": files}
    write_json(folder / SEAL, seal | {"digest": _digest(seal)})
    fsync_folder(folder.parent)


def read_seal(folder: Path) -> dict:
    """The contents of the seal; empty if there is none, {"files": None} if it is damaged."""
    if not (folder / SEAL).exists():
        return {}
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if seal.pop("digest") == _digest(seal):
            return seal
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {"files": None}


def _digest(seal: dict) -> str:
    return hashlib.sha256(json.dumps(seal, sort_keys=True).encode()).hexdigest()[:16]


def is_sealed_by(folder: Path, run: str | None = None) -> bool:
    """Whether `folder` was written completely, by the run with fingerprint `run` if one is given."""
    seal = read_seal(folder)
    return bool(seal) and (run is None or seal.get("run") == run)


def find_damage(folder: Path) -> str:
    """What is wrong with a sealed checkpoint: a file is missing, or has another size or content; "" if nothing."""
    files = read_seal(folder).get("files")
    if not files:
        return f"{SEAL} is damaged"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry[0]:
            return f"{name} has {path.stat().st_size} bytes, not {entry[0]}"
        if file_digest(path) != entry[1]:
            return f"{name} has been altered"
    return ""


def last_complete_checkpoint(output_dir: Path, run: str | None = None) -> tuple[str | None, list[str]]:
    """(the newest intact checkpoint of the run, what is wrong with newer ones). A save that was cut off, and so has no seal,
    is skipped without a message: it never counted."""
    damaged = []
    for folder in step_folders(output_dir):
        seal = read_seal(folder)
        if not seal or run is not None and seal.get("run", run) != run:
            continue
        if not (wrong := find_damage(folder)):
            return str(folder), damaged
        damaged.append(f"{folder}: {wrong}")
    return None, damaged


def remove_checkpoint(folder: Path) -> None:
    """Removes the seal first: after a kill in between, what is left does not count as a checkpoint. Of a
    link, to another disk perhaps, only the link."""
    if folder.is_symlink():
        folder.unlink()
        return
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder)


def rows_so_far(output_dir: Path, step: int) -> dict[str, list]:
    """Name -> [number, digest] of the rows up to `step` of each file that training appends to."""
    found = {}
    for name in GROWING:
        rows = [row for row in read_growing(output_dir / name) if isinstance(row.get("step"), int) and row["step"] <= step]
        found[name] = [len(rows), _digest({"rows": rows})]
    return found


def not_seen(checkpoint: Path, processes: int) -> str:
    """What the first of several processes does not see of what the others have just written there; "" for nothing."""
    lost = [n for n in range(processes) if processes > 1 and not (checkpoint / f"rng_state_{n}.pth").exists()]
    why = "so this run cannot be continued; put output_dir on a disk that all machines share"
    return f"{checkpoint}: what process {lost[0]} wrote is not there, {why}" if lost else ""


def changed_rows(checkpoint: Path) -> list[str]:
    """A line per file whose rows up to the checkpoint are no longer those that it was sealed with: training goes on from
    later steps, and does not make them again."""
    before, lines = read_seal(checkpoint).get("rows", {}), []
    for name, now in rows_so_far(checkpoint.parent, step_of(checkpoint)).items():
        count, _ = then = before.get(name, now)
        if now != then:
            how = f"has {now[0]} of the {count} rows" if now[0] < count else f"does not have the {count} rows as"
            lines.append(
                f"{checkpoint.parent / name}: {how} written up to step {step_of(checkpoint)}; they are not made again"
            )
    return lines
