"""Trackers (trackio, TensorBoard, wandb): which of them a run reports to, under what name, and how to look at it."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def apply_tracking(args, stage: str, output_dir: Path) -> None:
    """Trackers that are not installed are dropped with a line, never an error: a laptop offline must train.

    Names the run, where the user has not, by its stage and by its folder where that is called otherwise.
    """
    wanted = getattr(args, "report_to", None) or []
    installed = [tracker for tracker in wanted if _is_installed(tracker)]
    for tracker in sorted(set(wanted) - set(installed)):
        print(f"tracking: {tracker} is not installed, so this run is not tracked by it (pip install {tracker})")
    if wanted:
        args.report_to = installed
        folder = output_dir.name
        args.run_name = args.run_name or (folder if folder.startswith(stage) else f"{stage}-{folder}")
        os.environ.setdefault("TRACKIO_DIR", str(output_dir.parent / "trackio"))
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output_dir / "logs"))


def number_run(args) -> None:
    """Of a run that begins anew, e.g. by `--force`: a name that trackio does not hold yet (sft, sft-2, ...), since it would
    go on with the one of that name."""
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
    """The command that shows what trackio holds of a run with this resolved config; empty without trackio."""
    if "trackio" not in (config.get("report_to") or []):
        return ""
    return f"TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show --project {config['project']}"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
