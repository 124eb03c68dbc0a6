"""Start and finish of a run: the same for every recipe.

`check_run` refuses to overwrite and finds the checkpoint to continue from. `start_run`, called when data and models have
turned out to be usable, is the first to write or remove anything: `manifest.json` says "running". `finish_run` completes the
manifest, checks the run card's `expected` and prints the short human summary.
"""

import ctypes
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import torch
import transformers
from torch import distributed as dist

from llmrecipes.cards.model import write_model_card
from llmrecipes.config import InputError, RunArguments
from llmrecipes.manifest import digest, fingerprint, last_complete_checkpoint, read_manifest, write_json
from llmrecipes.sharding import launch_of, prepare_sharding
from llmrecipes.tracking import apply_tracking, describe_tracking, number_run

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "lm_eval", "numpy")
# Where a run writes and how it is told to do so; none of it changes what is learned.
NOT_PART_OF_A_RUN = {"output_dir", "force", "expected", "hardware", "source", "report_to", "run_name", "disable_tqdm"}
NOT_PART_OF_A_RUN |= {"logging_dir", "hub_token", "push_to_hub", "local_rank", "resume_from_checkpoint", "save_steps"}
NOT_PART_OF_A_RUN |= {"license", "logging_steps", "save_total_limit", "save_strategy", "num_gpus"}


@dataclass
class Run:
    """A running stage. `resume_from_checkpoint` is the last complete checkpoint or None; `note` is said when it starts."""

    stage: str
    output_dir: Path
    card: RunArguments
    is_main: bool
    manifest: dict
    resume_from_checkpoint: str | None = None
    keep: tuple[str, ...] = ()
    note: str = ""


def check_run(
    stage: str, run: RunArguments, args, configs: tuple, inputs: list[str | None] = (), keep: tuple[str, ...] = ()
) -> Run:
    """Whether this run may go into `args.output_dir`; nothing there changes.

    Args:
        args: the dataclass that holds `output_dir` (and `seed`): TrainingArguments or the stage's own.
        configs: every parsed dataclass; together they are the resolved config.
        inputs: model and data paths that the stage reads; local folders are fingerprinted.
        keep: files of an unfinished run that the next one goes on with, whatever has changed; `force` removes them too.

    Raises:
        InputError: the folder holds another run and `force` is off; the launch config would save no model that loads; what
            is read is the folder of a run that has not finished.
        SystemExit(0): this very run is already finished there.
    """
    tame_logs()
    keep_freed_memory()
    if not args.output_dir:
        raise InputError("`output_dir` is missing; say where the stage's result goes, e.g. outputs/<experiment>/" + stage)
    prepare_sharding(args)
    output_dir, is_main = Path(args.output_dir), int(os.environ.get("RANK", 0)) == 0
    apply_tracking(args, stage, output_dir)
    transformers.set_seed(args.seed)
    config = {k: v for c in configs for k, v in _to_json(c).items()}
    _require_finished([*inputs, *_paths_of(config)])
    manifest = {
        "stage": stage,
        "status": "running",
        "fingerprint": None,
        "command": " ".join(["python", *sys.argv]),
        "config": config,
        "inputs": {path: fingerprint(path) for path in inputs if path},
        "commit": _commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": _hardware(),
        "launch": launch_of(args),
        "metrics": {},
        "started": time.time(),
        "previous_seconds": 0.0,
    }
    relevant = {k: v for k, v in config.items() if _is_part_of_a_run(k)}
    manifest["fingerprint"] = digest([stage, relevant, manifest["inputs"]])
    previous = read_manifest(output_dir)
    if previous is None and output_dir.is_dir() and any(output_dir.iterdir()) and not run.force:
        raise InputError(f"{output_dir}: holds files that are no run of ours; choose another output_dir or --force")
    if previous is not None and not run.force:
        # A run that failed before its first checkpoint left nothing to lose: the corrected command just runs.
        holds_results = previous["status"] == "finished" or last_complete_checkpoint(output_dir)
        if previous["fingerprint"] != manifest["fingerprint"] and holds_results:
            raise InputError(f"{output_dir}: holds another run ({_difference(previous, manifest)}); --force overwrites it")
        if previous["status"] == "finished":
            if is_main:
                print(f"{stage}: already finished in {output_dir}; --force runs it again")
            sys.exit(0)
    checkpoint = None
    if previous is not None and previous["fingerprint"] == manifest["fingerprint"] and not run.force:
        checkpoint = last_complete_checkpoint(output_dir)
    if checkpoint and previous.get("launch", manifest["launch"]) != manifest["launch"]:
        then, now = (", ".join(f"{k} {v}" for k, v in m["launch"].items()) for m in (previous, manifest))
        raise InputError(f"{checkpoint}: was written under {then}, this launch has {now}; launch as before, or --force")
    if checkpoint:  # what the interrupted run took up to the checkpoint
        saved = (Path(checkpoint) / "trainer_state.json").stat().st_mtime
        manifest["previous_seconds"] = previous["previous_seconds"] + saved - previous["started"]
        if "run_name" in config:  # trackers go on with what they hold
            args.run_name = previous["config"].get("run_name") or args.run_name
    elif is_main:
        number_run(args)
    if "run_name" in config:
        config["run_name"] = args.run_name
    note = ""
    if previous is not None and not checkpoint and not run.force:
        note = f"{stage}: the run that was interrupted in {output_dir} had no checkpoint yet; starting from the beginning"
    return Run(stage, output_dir, run, is_main, manifest, checkpoint, () if run.force else keep, note)


def start_run(state: Run) -> None:
    """Make `output_dir` this run's: what lay there and is not continued from goes, the manifest says "running"."""
    _barrier()  # every process has found its input usable before the first one writes, and waits until it has written
    if state.is_main:
        if state.resume_from_checkpoint is None:
            _clear(state.output_dir, state.keep)
        state.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(state.output_dir / "manifest.json", state.manifest)
        if state.resume_from_checkpoint:
            print(f"{state.stage}: continuing from {state.resume_from_checkpoint}")
        elif state.note:
            print(state.note)
    _barrier()


def finish_run(state: Run, metrics: dict, made: str, next_steps: str = "") -> None:
    """Complete the manifest with `metrics` (name -> number), compare them with the run card, print the summary."""
    if state.is_main:
        _finish(state, metrics, made, next_steps)
    wait_to_leave()


def wait_to_leave() -> None:
    """A launcher ends the others when one process leaves with an error: none leaves before all is written.

    gloo's thread may come to drop the last collective when Python is already gone, which aborts the process
    (pytorch#190489); this one it cannot drop.
    """
    if dist.is_available() and dist.is_initialized():
        work = dist.barrier(async_op=True)
        work.wait()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(work))


def _finish(state: Run, metrics: dict, made: str, next_steps: str) -> None:
    manifest = state.manifest
    seconds = manifest.pop("previous_seconds") + time.time() - manifest.pop("started")
    manifest |= {"status": "finished", "metrics": metrics, "wall_seconds": round(seconds, 1), "made": made}
    manifest["expected"] = check_expected(state.card.expected or {}, metrics)
    # Trainer pickles its arguments beside the model; they stand in the manifest, and a result holds no pickle.
    (state.output_dir / "training_args.bin").unlink(missing_ok=True)
    manifest["output_fingerprint"] = fingerprint(state.output_dir)
    write_json(state.output_dir / "manifest.json", manifest)
    write_model_card(state.output_dir)
    print(f"\n=== {state.stage}: {made} ({seconds:.0f} s)")
    shown = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and "_per_second" not in k}
    for name, value in list(shown.items())[:16]:
        verdict = manifest["expected"].get(name)
        note = f"   expected {verdict['expected']} ± {verdict['tolerance']}: {verdict['verdict']}" if verdict else ""
        print(f"  {name:<28}{value:>12.4g}{note}")
    tracked = describe_tracking(manifest["config"])
    print(f"  lies in {state.output_dir}" + (f"\n  curves: {tracked}" if tracked else "")
          + (f"\n  next: {next_steps}" if next_steps else ""), flush=True)  # fmt: skip


def check_expected(expected: dict, metrics: dict) -> dict:
    """Compare `metrics` with the run card: metric -> expected, tolerance, got, verdict (met / missed / not measured)."""
    result = {}
    for name, bounds in expected.items():
        if bounds is None:
            continue
        value, tolerance = bounds
        got = metrics.get(name)
        verdict = "not measured" if got is None else "met" if abs(got - value) <= tolerance else "missed"
        result[name] = {"expected": value, "tolerance": tolerance, "got": got, "verdict": verdict}
    return result


def tame_logs() -> None:
    """One readable log: warnings that a user cannot act on are silenced, progress bars stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|trl|accelerate")
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    for name in ("httpx", "filelock", "fsspec", "absl", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> None:
    """Has glibc keep up to 1 GiB of what is freed: every training step on a CPU frees large tensors and asks for the same
    again, and memory that comes from the system is zeroed page by page. Does nothing elsewhere."""
    if sys.platform != "linux" or torch.accelerator.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _clear(output_dir: Path, keep: tuple[str, ...]) -> None:
    """Forget an unfinished or overridden run, but for the files `keep`; called only after the refusals above."""
    import shutil

    if read_manifest(output_dir) is None:
        return
    if not any((output_dir / name).exists() for name in keep):
        shutil.rmtree(output_dir)
        return
    # The manifest stays until the new one takes its place: killed in between, the folder is still a run of ours.
    for path in output_dir.iterdir():
        if path.name not in (*keep, "manifest.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _paths_of(config: dict) -> list[str]:
    """What a resolved config names as models and data to read."""
    named = [value for key, value in config.items() if key.endswith(("name_or_path", "reward_model")) and value]
    sources = [s for key in ("datasets", "eval_datasets") for s in config.get(key) or []]
    return named + [source["path"] for source in sources]


def _require_finished(paths: list[str | None]) -> None:
    for path in paths:
        manifest = read_manifest(path) if path else None
        if manifest and "stage" in manifest and manifest.get("status") != "finished":
            raise InputError(
                f"{path}: the {manifest['stage']} run that writes it has not finished (its manifest.json says "
                f"{manifest.get('status')!r}); wait for it, or start it again"
            )


def _is_part_of_a_run(key: str) -> bool:
    return key not in NOT_PART_OF_A_RUN and not key.startswith("watch_")  # looks leave training as it is


def _difference(previous: dict, manifest: dict) -> str:
    old, new = previous.get("config", {}), manifest["config"]
    keys = [k for k in new if _is_part_of_a_run(k) and old.get(k) != new[k]]
    if keys:
        return f"`{keys[0]}` was {str(old.get(keys[0]))[:60]}, is {str(new[keys[0]])[:60]}"
    return "its inputs changed" if previous.get("stage") == manifest["stage"] else f"of stage {previous.get('stage')}"


def _to_json(config) -> dict:
    raw = config.to_dict() if hasattr(config, "to_dict") else asdict(config) if is_dataclass(config) else dict(config)
    return {
        k: v
        for k, v in json.loads(json.dumps(raw, default=str)).items()
        if "token" not in k
        or "_id" in k
        or k in ("max_new_tokens", "pad_token", "eos_token", "average_tokens_across_devices", "stop_token")
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None


def _hardware() -> dict:
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "accelerators": accelerators}
