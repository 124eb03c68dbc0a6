"""The one notion of "the same run", and what says so in every run folder: manifest and fingerprints.

A run is its config and the contents of its inputs. Code, location, launch and timing are not part of it. Recipes and the
pipeline both call `run_fingerprint` to identify a run and `standing` to see what its folder holds. Imports nothing heavy.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from llmrecipes.checkpoints import is_sealed_by, step_folders
from llmrecipes.config import InputError
from llmrecipes.durable import file_digest, fsync_file, read_json
from llmrecipes.locks import LOCK

ROOT = Path(__file__).parent.parent
# Where a run writes and how it is launched; none of this changes what is learned.
NOT_PART_OF_A_RUN = {"output_dir", "force", "expected", "hardware", "source", "report_to", "run_name", "disable_tqdm"}
NOT_PART_OF_A_RUN |= {"logging_dir", "push_to_hub", "local_rank", "resume_from_checkpoint", "license", "num_gpus", "env"}
NOT_PART_OF_A_RUN |= {"logging_steps", "logging_strategy", "logging_first_step", "save_steps", "save_total_limit"}
NOT_PART_OF_A_RUN |= {"save_strategy", "preview", "dataset_num_proc", "global_batch_size", "published"}
NOT_PART_OF_A_RUN |= {
    "executor",
    "workers",
    "num_tasks",
    "retries",
    "slurm",
    "dry_run",
    "plan",
}  # how the work on a corpus is distributed
NOT_PART_OF_A_RUN |= {"tokens_dir", "verify_tokens"}
NOT_PART_OF_A_RUN |= {"per_device_train_batch_size", "gradient_accumulation_steps"}  # their product is
HOW_IT_IS_DONE = ("watch_", "hub_", "dataloader_num", "dataloader_pin", "dataloader_prefetch", "dataloader_persistent")
MANIFEST_FILE = "manifest.json"
PARTS = ("samples*", "work/cleaned/[0-9]*")  # what unfinished runs of sample and corpus have done, and continue from
TOKENS_FILE = "tokens.json"  # of a folder of token shards
# Files that differ between equal runs or are written about a run afterwards: no later stage reads them.
NOT_OUTPUT = {MANIFEST_FILE, "trainer_state.json", "watch.jsonl", "evaluation.json", "health.json", "health.md"}
NOT_OUTPUT |= {"samples.partial.jsonl", "quality.json", "quality.html", "training_args.bin", "report.json", "report.html"}
NOT_OUTPUT_FOLDERS = ("checkpoint-", "logs", "trackio", "completions", "runs")


def read_manifest(output_dir: str | Path) -> dict | None:
    """The folder's manifest, or None if there is none or its writing was interrupted."""
    return read_json(Path(output_dir) / MANIFEST_FILE) or None


def in_order(folders: Iterable[Path]) -> list[Path]:
    """`folders` of runs, sorted so that a run comes after those it reads from; otherwise in the given order. File times are
    no help: clocks are set back, and copying changes them."""
    found = {folder: read_manifest(folder) or {} for folder in folders}
    names = {folder: path_of(folder, manifest) for folder, manifest in found.items()}
    ordered = []
    while left := [folder for folder in found if folder not in ordered]:
        waited = {names[folder] for folder in left}
        ready = (f for f in left if not waited & {*found[f].get("inputs", {})} - {names[f]})
        ordered.append(next(ready, left[0]))
    return ordered


def runs_below(root: Path) -> list[Path]:
    """Folders of the runs in `root`, a chain's folder, by when they were finished, but inputs before what reads them."""
    found = sorted(root.glob(f"*/{MANIFEST_FILE}"), key=lambda path: path.stat().st_mtime)
    return in_order(path.parent for path in found)


def path_of(folder: Path, manifest: dict) -> str:
    """`folder` as named in its run's config, wherever it is now."""
    return manifest.get("config", {}).get("output_dir", str(folder))


def digest(value) -> str:
    """16 hex digits over a nested value of plain types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


# ---- Contents ----


def fingerprint(path: str | Path) -> str:
    """16 hex digits over names and contents of a folder's or file's results; for a Hub id, the id itself.

    Checkpoints, logs, the manifest, the training history, health checks and the card in the folder of a run or model are
    left out: they do not change what the next stage reads, and they differ between equal runs. A digest recorded by a
    finished run is trusted as long as the file's size and modification time are unchanged.
    """
    root = Path(path)
    if not root.exists():
        return f"hub:{path}"
    return digest({name: entry[2] for name, entry in output_files(root).items()})


def output_files(root: Path, flush: bool = False, below: Path | None = None) -> dict[str, list]:
    """Name -> [size, mtime in ns, digest] of each file that belongs to the result `root`, a file or folder.

    flush: also flushes all of them to disk. below: a file or folder in `root`; only what is there.
    """
    part = below or root
    manifest = (read_manifest(root) or {}) if root.is_dir() else {}
    known = manifest.get("files")
    known = known if isinstance(known, dict) else {}
    of_training = any((root / name).exists() for name in (MANIFEST_FILE, "config.json", "adapter_config.json"))
    found = {}
    for file in [part] if part.is_file() else sorted(p for p in part.rglob("*") if p.is_file()):
        name = "" if file == root else file.relative_to(root).as_posix()
        is_beside = (
            name in NOT_OUTPUT or "/" in name and name.startswith(NOT_OUTPUT_FOLDERS) or name == "README.md" and manifest
        )
        if of_training and is_beside or file.name.startswith(".") or name.endswith(".tmp"):
            continue
        stat = file.stat()
        entry = known.get(name)
        if not (isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns]):
            entry = [stat.st_size, stat.st_mtime_ns, file_digest(file)]
        found[name] = entry
        if flush:
            fsync_file(file)
    return found


def run_of(path: Path) -> tuple[Path, dict] | None:
    """(folder, manifest) of the run that wrote `path`: of this folder or, for a result in it, or a folder of them, of one up
    to three levels above; None if there is no run. A checkpoint, a log or a completion is nobody's result."""
    for folder in (path, *path.parents[:3]) if path.exists() else ():  # the name of a hub's model has no folder above it
        manifest = read_manifest(folder)
        if manifest and "stage" in manifest:
            name = path.relative_to(folder).as_posix()
            return None if name in NOT_OUTPUT or name.startswith(NOT_OUTPUT_FOLDERS) else (folder, manifest)
    return None


def is_finished(manifest: dict) -> bool:
    """Whether a run has written that it is finished: with it come its files, which a status changed by hand has not."""
    return manifest.get("status") == "finished" and isinstance(manifest.get("files"), dict)


def altered_outputs(folder: Path, manifest: dict, below: Path | None = None) -> tuple[str, str]:
    """(what is gone, what has changed) of what the finished run of `manifest` wrote in `folder`, or of what is `below` a
    file or folder in there; "" for nothing."""
    there = output_files(folder, below=below)
    known = {name: entry for name, entry in manifest["files"].items() if (folder / name).is_relative_to(below or folder)}
    changed = [name for name in known if name in there and not _is_digest(there[name][2], known[name])]
    return _listed([name for name in known if name not in there]), _listed(changed)


def _is_digest(found: str, entry) -> bool:
    return isinstance(entry, list) and entry[2:] == [found]


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


# ---- What a run is ----


def run_fingerprint(stage: str, given: dict, batch: int | None = None) -> str:
    """The identity of a run: the stage, its config, and the contents of what it reads.

    given: the config as the user wrote it, YAML and command line together. batch: rows per optimizer step over all
    processes, for a stage that trains; their split into micro-batches and processes is not part of the run.
    """
    return digest([stage, batch, {k: _canonical(k, v) for k, v in given.items() if is_part_of_a_run(k)}])


def global_batch(given: dict, processes: int) -> int | None:
    """Rows per optimizer step according to config and launch; None if these are not numbers."""
    try:
        per_device = int(given.get("per_device_train_batch_size") or 8)  # TrainingArguments' default
        return per_device * int(given.get("gradient_accumulation_steps") or 1) * processes
    except (TypeError, ValueError):
        return None


def is_part_of_a_run(key: str) -> bool:
    """Whether a changed value of `key` makes another run."""
    return key not in NOT_PART_OF_A_RUN and not key.startswith(HOW_IT_IS_DONE)


def inputs_of(given: dict) -> dict[str, str]:
    """Local path -> fingerprint, for every file and folder that the config names as an input."""
    return {path: fingerprint(path) for key, value in given.items() if is_part_of_a_run(key) for path in _paths(key, value)}


def corpora_of(inputs: Iterable[str]) -> dict[str, str]:
    """Folder of a corpus -> fingerprint of its report, for each corpus that `inputs` are in or were made from.

    Raises:
        InputError: a file of it that is read is not the one that the report is about.
    """
    found = {}
    for path in map(Path, inputs):
        for folder in (path, *path.parents[:3]):
            manifest = read_manifest(folder) or {}
            corpora = manifest.get("corpora") or {}
            if path_of(folder, manifest) in corpora:  # it is one itself
                _require_as_reported(folder, path, manifest)
            found |= corpora
        found |= read_json(path / TOKENS_FILE).get("corpora") or {}
    return found


def _require_as_reported(folder: Path, path: Path, manifest: dict) -> None:
    """InputError if a shard below `path`, all or a part of the corpus in `folder`, differs from those in its manifest."""
    known = {name: entry[2] for name, entry in (manifest.get("files") or {}).items()}
    there = {name: entry[2] for name, entry in output_files(folder).items()}
    for name in sorted(name for name in {*known, *there} if name.startswith("data/")):
        if known.get(name) != there.get(name) and (folder / name).is_relative_to(path):
            how = "is gone" if name not in there else "was added" if name not in known else "was changed"
            raise InputError(
                f"{folder / name}: {how} after the corpus was built, so its report.json is not about these documents; build "
                "it again, or copy the files that you want to a folder of their own"
            )


def _canonical(key: str, value):
    """`value` in canonical form: numbers as numbers however they are written, paths to read as their contents."""
    if isinstance(value, dict):
        return {str(k): v if k in _inside(value) else _canonical(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(key, v) for v in value]
    if isinstance(value, str):
        if paths := list(_paths(key, value)):
            return ["contents", *(fingerprint(path) for path in paths)]
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
            return float(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


def _inside(source: dict) -> tuple[str, ...]:
    """The keys of a source that name files inside of its `path`, not below the current folder."""
    path = source.get("path")
    is_own = isinstance(path, str) and (
        path == "stdlib" or path.startswith("pypi:") or os.path.isdir(os.path.expanduser(path))
    )
    return ("data_files", "data_dir") if is_own else ()


def _paths(key: str, value) -> Iterator[str]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from () if k in _inside(value) else _paths(str(k), v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _paths(key, v)
    elif isinstance(value, str) and len(value) < 4096 and "\n" not in value and "\0" not in value:
        # A bare word such as `train` is not taken for a path even if a folder of that name exists; a file of that name is.
        if "/" in value or key.endswith(("path", "_file", "files", "datasets", "sources")) or os.path.isfile(value):
            value = os.path.expanduser(value)
            if os.path.exists(value):
                yield value
            elif glob.has_magic(value):
                yield from sorted(glob.glob(value, recursive=True))


def difference(previous: dict, manifest: dict) -> str:
    """How the run of `manifest` differs from that of `previous`, as text for people."""
    if previous.get("stage") != manifest["stage"]:
        return f"of stage {previous.get('stage')}"
    if not isinstance(previous.get("given"), dict):
        return "of an older version"
    if found := _first_difference(previous["given"], manifest["given"]):
        return found
    before, batch = previous.get("batch"), manifest.get("batch")
    if before != batch:
        return (
            f"{before} rows in an optimizer step, now {batch}; per_device_train_batch_size × gradient_accumulation_steps × "
            "processes must stay the same"
        )
    inputs = previous.get("inputs") or {}
    if changed := [path for path, found in manifest["inputs"].items() if inputs.get(path, found) != found]:
        return f"{changed[0]} has changed"
    return "the contents of an input changed"


def _first_difference(before: dict, given: dict, read_inputs: bool = True) -> str:
    for key in [*given, *before]:
        old, new = (("not given" if key not in m else m[key]) for m in (before, given))
        if not is_part_of_a_run(key) or not read_inputs and (any(_paths(key, old)) or any(_paths(key, new))):
            continue
        if _canonical(key, old) != _canonical(key, new):
            if isinstance(old, list) and isinstance(new, list) and old != new:  # the first item that differs
                n = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
                key, old, new = f"{key}[{n}]", [*old, "not given"][n], [*new, "not given"][n]
            return f"`{key}` was {str(old)[:60]}, is {str(new)[:60]}"
    return ""


def plain_difference(previous: dict, given: dict) -> str:
    """The first setting, other than inputs to read, in which the config `given` differs from that of the manifest
    `previous`; opens no input."""
    before = previous.get("given")
    return _first_difference(before, given, read_inputs=False) if isinstance(before, dict) else ""


# ---- What a folder holds ----


def standing(output_dir: Path, run: str) -> str:
    """What `output_dir` holds, from the point of view of the run with fingerprint `run`:

    "nothing" in its way, its own "finished" result, its own "unfinished" work, "another" run with something trained or
    finished, or "foreign" files that no run of ours wrote.
    """
    manifest, steps = read_manifest(output_dir), step_folders(output_dir)
    if manifest is None:
        if any(is_sealed_by(folder, run) for folder in steps):
            return "unfinished"  # only the manifest is damaged
        entries = output_dir.iterdir() if output_dir.is_dir() else ()
        left = {p.name for p in entries if not p.is_dir() or any(p.iterdir())}  # trainers create empty folders
        left -= {MANIFEST_FILE, "manifest.tmp", LOCK, *(folder.name for folder in steps if not is_sealed_by(folder))}
        if (output_dir / MANIFEST_FILE).exists():
            return "another" if left - NOT_OUTPUT - {"logs"} or _holds_part(output_dir) else "nothing"
        return "foreign" if left else "nothing"
    if manifest.get("fingerprint") == run:
        return "finished" if is_finished(manifest) else "unfinished"
    # A run that failed before its first checkpoint left nothing to lose: the corrected command just runs.
    # In versions without checksums (which came with "given"), any checkpoint may be intact.
    holds_results = (
        manifest.get("status") == "finished"
        or any(map(is_sealed_by, steps))
        or steps
        and "given" not in manifest
        or _holds_part(output_dir)
    )
    return "another" if holds_results and not manifest.get("clearing") else "nothing"


def _holds_part(output_dir: Path) -> bool:
    """Whether an unfinished run of a stage without checkpoints has done a part of its work."""
    found = (path for name in PARTS for path in output_dir.glob(name) if path.suffix != ".tmp")
    return any(path.is_dir() or path.stat().st_size for path in found)


def move_paths(value, folders: dict):
    """`value`, a nested config, with every path at or below a key of `folders` moved to the folder's new place."""
    if isinstance(value, dict):
        return {key: move_paths(v, folders) for key, v in value.items()}
    if isinstance(value, list):
        return [move_paths(v, folders) for v in value]
    if isinstance(value, str):
        for home, to in folders.items():
            if home != to and PurePath(value).is_relative_to(home):
                return str(to / PurePath(value).relative_to(home))
    return value


def strings(value) -> list[str]:
    """All strings in a nested config."""
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []
