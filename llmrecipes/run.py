"""Start and finish of a run: the same for every recipe.

`check_run` refuses to overwrite and finds the checkpoint to continue from. `start_run`, called once data and models are
known to be usable, is the first to write or remove anything: `manifest.json` says "running". `finish_run` completes the
manifest, checks the run card's `expected` and prints a short summary.
"""

import atexit
import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from torch import distributed as dist

from llmrecipes.cards.model import write_model_card
from llmrecipes.checkpoints import (
    changed_rows,
    last_complete_checkpoint,
    not_seen,
    read_seal,
    remove_checkpoint,
    step_folders,
    step_of,
)
from llmrecipes.config import InputError, RunArguments, StageArguments
from llmrecipes.cpu import tune_cpu
from llmrecipes.durable import write_json
from llmrecipes.locks import LOCK, find_holder, hold_folder, release_folder
from llmrecipes.logs import quiet_logs
from llmrecipes.manifest import (
    MANIFEST_FILE,
    ROOT,
    altered_outputs,
    difference,
    digest,
    output_files,
    read_manifest,
    standing,
)
from llmrecipes.measures import BOOKKEEPING
from llmrecipes.memory import peak_memory_gib
from llmrecipes.plan.of_run import plan_of_run
from llmrecipes.processes import once
from llmrecipes.provenance import describe_run
from llmrecipes.secrets import known_secrets, scrub_secrets
from llmrecipes.sharding import prepare_sharding, refuse_several_gpus
from llmrecipes.signals import IN_A_CHAIN, handle_signals, received
from llmrecipes.templates import fix_date
from llmrecipes.tracking import apply_tracking, describe_tracking, number_run


@dataclass
class Run:
    """A running stage. `resume_from_checkpoint` is the last complete checkpoint or None; `notes` are printed at its
    start."""

    stage: str
    output_dir: Path
    card: RunArguments
    is_main: bool
    manifest: dict
    resume_from_checkpoint: str | None = None
    keep: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    goes_on: bool = False  # continues an unfinished run of the same fingerprint, with or without a checkpoint
    found: dict | None = None  # the manifest already there
    is_foreign: bool = False  # the files there are not from a run
    began: float = field(default_factory=time.monotonic)  # the wall clock may be changed meanwhile

    def seconds(self) -> float:
        """Seconds of this run so far, including those of an interrupted run up to its checkpoint."""
        return self.manifest["previous_seconds"] + time.monotonic() - self.began


def check_run(
    stage: str,
    run: RunArguments,
    args: StageArguments,
    configs: tuple,
    inputs: list[str | None] = (),
    keep: tuple[str, ...] = (),
    resumes: bool = False,
    rebuilds: bool = False,
) -> Run:
    """Checks that this run may write to `args.output_dir`; changes nothing there.

    Args:
        args: TrainingArguments or the stage's own dataclass.
        configs: every parsed dataclass; together they are the resolved config.
        inputs: what the stage reads besides what its config names; local files and folders are fingerprinted.
        keep: files of an unfinished run that the next one reuses, whatever has changed; `force` removes them too.
        resumes: the stage itself continues from everything left by an unfinished run of the same config and inputs.
        rebuilds: the result is rebuilt from data kept elsewhere, so another run of the same stage may be overwritten.

    Raises:
        InputError: the folder holds another run and `force` is off; another process is writing there; all checkpoints are
            damaged; the launch config would save no loadable model; one process sees several GPUs; an input is the folder of
            an unfinished run.
        SystemExit(0): this very run is already finished there.
    """
    quiet_logs()
    tune_cpu(stage)
    if not args.output_dir:
        raise InputError("`output_dir` is missing; say where the stage's result goes, e.g. outputs/<experiment>/" + stage)
    prepare_sharding(args)
    refuse_several_gpus(stage, args)
    output_dir, is_main = Path(args.output_dir), int(os.environ.get("RANK", 0)) == 0
    apply_tracking(args, stage, output_dir)
    transformers.set_seed(args.seed)
    manifest = describe_run(stage, run, args, configs, inputs)
    state = Run(stage, output_dir, run, is_main, manifest, keep=() if run.force else keep)
    if manifest["config"].get("preview"):  # writes nothing, so the folder's contents do not matter
        args.output_dir = _scratch_folder()  # trainers create the folder when they are built
        _agree(state)
        return state
    state.found = read_manifest(output_dir)
    force = run.force or rebuilds and (state.found or {}).get("stage") == stage
    held = standing(output_dir, manifest["fingerprint"])
    state.is_foreign = held == "foreign"
    if not force:
        _refuse_another(state, held)
    if holder := find_holder(output_dir):
        raise InputError(f"{output_dir}: {holder} is writing there; wait for it, or stop it")
    if held == "unfinished" and not force and not (state.found or {}).get("clearing"):
        _continue(state, args, resumes)
    _agree(state)
    if state.resume_from_checkpoint is None and is_main:
        number_run(args)
    if "run_name" in manifest["config"]:
        manifest["config"]["run_name"] = scrub_secrets(args.run_name, known_secrets(os.environ))
    return state


def _agree(state: Run) -> None:
    """Dates conversations as the main process does: others may have begun after midnight, or live in another time zone.
    InputError if this process would continue from another checkpoint: each would train on, with moments of its own."""
    manifest, own = state.manifest, state.resume_from_checkpoint
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        manifest["date"], checkpoint = once(lambda: (manifest["date"], own))
        if own != checkpoint:
            here, there = (Path(path).name if path else "no checkpoint" for path in (own, checkpoint))
            who = f"process {os.environ['RANK']} on {socket.gethostname()}"
            raise InputError(
                f"{state.output_dir}: {who} finds {here} there, the first process {there}; put output_dir on a disk that "
                "all machines share"
            )
    fix_date(manifest["date"])


def _scratch_folder() -> str:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


def _refuse_another(state: Run, held: str) -> None:
    """InputError for a folder of another run or with foreign files; SystemExit(0) if this very run is finished there."""
    output_dir, found = state.output_dir, state.found or {}
    if held == "foreign":
        raise InputError(f"{output_dir}: holds files that no run wrote; choose another output_dir or --force")
    if held == "another":
        how = difference(found, state.manifest) if found else "its manifest.json cannot be read"
        raise InputError(f"{output_dir}: holds another run ({how}); --force overwrites it")
    if held == "finished":
        gone, changed = altered_outputs(output_dir, found)
        if gone:
            raise InputError(f"{output_dir}: finished, but without {gone}; put that back, or --force runs it again")
        if state.is_main:
            if not find_holder(output_dir):
                (output_dir / LOCK).unlink(missing_ok=True)  # left by a process killed at its very end
            changed = f"{changed} changed since; " if changed else ""
            changed += "code changed since; " if found.get("code") != state.manifest["code"] else ""
            print(f"{state.stage}: already finished in {output_dir}; {changed}--force runs it again")
        sys.exit(0)


def _continue(state: Run, args: StageArguments, resumes: bool) -> None:
    """What the unfinished run of this folder goes on with: its date, its checkpoint. See `check_run`."""
    state.goes_on = resumes
    state.manifest["date"] = (state.found or {}).get("date") or state.manifest["date"]
    _find_checkpoint(state, args)
    if not state.resume_from_checkpoint and not resumes:
        state.notes.append(
            f"{state.stage}: the run that was interrupted in {state.output_dir} had no checkpoint yet; starting from the "
            "beginning"
        )


def _find_checkpoint(state: Run, args: StageArguments) -> None:
    """The checkpoint from which the unfinished run continues; InputError if it has checkpoints but none is usable."""
    checkpoint, damaged = last_complete_checkpoint(state.output_dir, state.manifest["fingerprint"])
    if damaged and checkpoint is None:
        raise InputError(f"{damaged[0]}, and there is no whole checkpoint before it; --force starts over")
    if checkpoint is None:
        return
    state.notes += [f"{wrong}; the checkpoint before it is used" for wrong in damaged]
    if getattr(args, "save_only_model", False):
        raise InputError(
            f"{checkpoint}: holds no optimizer, because of `save_only_model`, so the run cannot continue; --force "
            "starts over, or use it as model_name_or_path of a new run"
        )
    seal, launch = read_seal(Path(checkpoint)), state.manifest["launch"]
    _require_fitting_launch(state, checkpoint, seal, launch)
    state.resume_from_checkpoint = checkpoint
    state.notes += changed_rows(Path(checkpoint))
    state.manifest["previous_seconds"] = seal["seconds"]  # seconds of the interrupted run up to the checkpoint
    if "run_name" in state.manifest["config"]:  # trackers continue the same run
        args.run_name = ((state.found or {}).get("config") or {}).get("run_name") or args.run_name


def _require_fitting_launch(state: Run, checkpoint: str, seal: dict, launch: dict) -> None:
    """InputError if the checkpoint's states can only be loaded by the same processes that wrote it. Unsharded weights and
    optimizer states load in any number of processes, with results equal up to rounding (and dropout, drawn per process)."""
    if seal["launch"] == launch:
        if wrong := not_seen(Path(checkpoint), launch["processes"]):
            raise InputError(wrong)
        return
    then, now = (", ".join(f"{k} {v}" for k, v in m.items()) for m in (seal["launch"], launch))
    own = [name for name in seal["files"] if re.fullmatch(r"(?!rng_state).*_\d+\.pth?", name)]
    if own or {seal["launch"]["sharding"], launch["sharding"]} != {"none"}:
        why = f"{own[0]} is one process's own" if own else "their shards of the optimizer do not fit"
        raise InputError(
            f"{checkpoint}: was written under {then}, this launch has {now}, and {why}; launch as before, or --force"
        )
    state.notes.append(f"{state.stage}: {checkpoint} was written under {then}, this launch has {now}")


def start_run(state: Run) -> None:
    """Takes over `output_dir`: removes what is not continued from and sets the manifest to "running". From here on SIGTERM
    and Ctrl-C raise Interrupted, which sets it to "interrupted".

    Raises:
        InputError: another process has started writing there.
    """
    _barrier()  # every process has checked its input before the first one writes
    if state.is_main:
        state.output_dir.mkdir(parents=True, exist_ok=True)
        hold_folder(state.output_dir)
        if read_manifest(state.output_dir) != state.found:
            raise InputError(f"{state.output_dir}: another process has just written there; give the command again")
        if not state.is_foreign and standing(state.output_dir, state.manifest["fingerprint"]) == "foreign":
            release_folder(state.output_dir)
            raise InputError(
                f"{state.output_dir}: holds files that no run wrote, and that were not seen when this one was checked; "
                "choose another output_dir"
            )
        for note in state.notes:
            print(note)
        if state.resume_from_checkpoint:
            print(f"{state.stage}: continuing from {state.resume_from_checkpoint}")
            for folder in step_folders(state.output_dir):  # incomplete or damaged: they will be written again
                if step_of(folder) > step_of(Path(state.resume_from_checkpoint)):
                    remove_checkpoint(folder)
        elif not state.goes_on:
            # If killed while clearing the folder, the same command continues clearing: the old contents are given up.
            write_json(state.output_dir / MANIFEST_FILE, state.manifest | {"clearing": True})
            _clear(state)
        write_json(state.output_dir / MANIFEST_FILE, state.manifest)
        atexit.register(_note_interruption, state, os.getpid())
    handle_signals()
    _barrier()


def _note_interruption(state: Run, process: int) -> None:
    if received and state.manifest["status"] == "running" and os.getpid() == process:
        with contextlib.suppress(OSError):
            write_json(state.output_dir / MANIFEST_FILE, state.manifest | {"status": "interrupted"})


def finish_run(state: Run, metrics: dict, made: str, next_steps: str = "", shown: Collection[str] | None = None) -> None:
    """Completes the manifest with `metrics` (name -> number), compares them with the run card, prints the summary.

    shown: the metrics to print; by default all that measure quality. next_steps: printed unless the stage runs in a chain.
    """
    if state.is_main:
        _finish(state, metrics, made, "" if os.environ.get(IN_A_CHAIN) else next_steps, shown)
    _barrier()  # launchers kill the others when one exits with an error: none exits before all is written


def _finish(state: Run, metrics: dict, made: str, next_steps: str, shown: Collection[str] | None) -> None:
    manifest, seconds = state.manifest, state.seconds()
    del manifest["previous_seconds"], manifest["started"]
    manifest |= {"status": "finished", "metrics": metrics, "wall_seconds": round(seconds, 1), "made": made}
    manifest["peak_memory_gib"] = peak_memory_gib()
    manifest["plan"] = plan_of_run(manifest, ROOT / "recipes" / f"{state.stage}.py")
    manifest["expected"] = check_expected(state.card.expected or {}, metrics)
    # Trainer pickles its arguments next to the model; the manifest has them, and a result must not hold pickles.
    (state.output_dir / "training_args.bin").unlink(missing_ok=True)
    manifest["files"] = output_files(state.output_dir, flush=True)
    manifest["output_fingerprint"] = digest({name: entry[2] for name, entry in manifest["files"].items()})
    write_model_card(state.output_dir, manifest=manifest)
    write_json(state.output_dir / MANIFEST_FILE, manifest)  # written last: a "finished" run is complete
    release_folder(state.output_dir)
    print(f"\n=== {state.stage}: {made} ({seconds:.0f} s)")
    told = lambda name: name in manifest["expected"] or not BOOKKEEPING.search(name)
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and told(k)}
    for name, value in ((k, v) for k, v in numbers.items() if shown is None or k in shown):
        verdict = manifest["expected"].get(name)
        note = f"   expected {verdict['expected']} ± {verdict['tolerance']}: {verdict['verdict']}" if verdict else ""
        text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
        print(f"  {name:<28}{text:>12}{note}")
    for name, found in manifest["expected"].items():
        if found["got"] is None:
            print(f"  {name:<28}{'-':>12}   expected {found['expected']} ± {found['tolerance']}: {found['verdict']}")
    tracked = describe_tracking(manifest["config"])
    print(
        f"  saved in {state.output_dir}"
        + (f"\n  curves: {tracked}" if tracked else "")
        + (f"\n  next: {next_steps}" if next_steps else ""),
        flush=True,
    )


def check_expected(expected: dict, metrics: dict) -> dict:
    """Compares `metrics` with the run card: metric -> expected, tolerance, got, verdict (met / missed / not measured)."""
    result = {}
    for name, bounds in expected.items():
        if bounds is None:
            continue
        value, tolerance = bounds
        got = metrics.get(name)
        verdict = "not measured" if got is None else "met" if abs(got - value) <= tolerance else "missed"
        result[name] = {"expected": value, "tolerance": tolerance, "got": got, "verdict": verdict}
    return result


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _clear(state: Run) -> None:
    """Removes an unfinished or overridden run, except for the files `keep`; from a folder that is not a run's, only its
    checkpoints, which would mix with this run's. Called only after the checks above."""
    kept = {*state.keep, MANIFEST_FILE, LOCK}
    for path in state.output_dir.iterdir():
        if state.is_foreign and not path.name.startswith("checkpoint-") or path.name in kept:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
