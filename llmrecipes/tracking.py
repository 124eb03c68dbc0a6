"""Trackers (trackio, TensorBoard, wandb): which of them a run reports to, under what name, and how to view it."""

import os
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmrecipes.config import StageArguments
from llmrecipes.secrets import REMOVED, known_secrets, scrub_secrets


def apply_tracking(args: StageArguments, stage: str, output_dir: Path) -> None:
    """Drops trackers that are not installed with a message, never an error: an offline laptop must be able to train.

    Names the run, unless the user has, after its stage, and its folder if that has another name.
    """
    for name in ("run_name", "project"):  # trackers write them down, and take them for names of files
        given = getattr(args, name, None) or ""
        clean = scrub_secrets(given, known_secrets(os.environ)).replace(REMOVED, REMOVED.strip("[]"))
        if clean != given:
            print(f"tracking: `{name}` holds a secret, which is removed from it")
            setattr(args, name, clean)
    wanted = getattr(args, "report_to", None) or []
    installed = [tracker for tracker in wanted if _is_installed(tracker)]
    for tracker in sorted(set(wanted) - set(installed)):
        print(f"tracking: {tracker} is not installed, so this run is not tracked by it (pip install {tracker})")
    if wanted:
        args.report_to = installed
        folder = output_dir.name
        args.run_name = args.run_name or (folder if folder.startswith(stage) else f"{stage}-{folder}")
        place_trackers(output_dir)


def place_trackers(output_dir: Path) -> None:
    """Names the folders that trackers write to, unless the user has. To be called before trackio is imported, as TRL's
    GRPOTrainer does: it reads its folder's name once."""
    os.environ.setdefault("TRACKIO_DIR", str(output_dir.parent / "trackio"))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output_dir / "logs"))


def number_run(args: StageArguments) -> None:
    """Gives a run that starts over, e.g. by `--force`, a name not yet in trackio (sft, sft-2, ...), which would otherwise
    continue the run of that name."""
    if "trackio" not in (getattr(args, "report_to", None) or []):
        return
    import trackio

    try:
        taken = {run.name for run in trackio.Api().runs(args.project)}
    except ValueError:  # the project's first run
        return
    name, number = args.run_name, 1
    while args.run_name in taken:
        number += 1
        args.run_name = f"{name}-{number}"


def describe_tracking(config: dict) -> str:
    """The command that shows a run with this resolved config in trackio; empty without trackio."""
    if "trackio" not in (config.get("report_to") or []):
        return ""
    folder, project = shlex.quote(os.environ["TRACKIO_DIR"]), shlex.quote(config["project"])
    return f"TRACKIO_DIR={folder} trackio show --project {project}"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
