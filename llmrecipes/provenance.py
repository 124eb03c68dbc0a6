"""What a run's manifest says of where it comes from: config, inputs, code, versions, hardware, launch."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmrecipes.code_files import code_digest
from llmrecipes.config import InputError, RunArguments, StageArguments
from llmrecipes.manifest import (
    ROOT,
    altered_outputs,
    corpora_of,
    global_batch,
    inputs_of,
    is_finished,
    run_fingerprint,
    run_of,
)
from llmrecipes.secrets import known_secrets, scrub_secrets
from llmrecipes.sharding import launch_of
from llmrecipes.threads import find_quota

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "lm_eval", "numpy")


def describe_run(stage: str, run: RunArguments, args: StageArguments, configs: tuple, inputs: list[str | None]) -> dict:
    """The manifest of a run that starts now; InputError if one of `inputs` is an unfinished run's."""
    known = known_secrets(os.environ)
    config = scrub_secrets({k: v for c in configs for k, v in _to_json(c).items()}, known)
    # As the user wrote it; without a command line, only the resolved config exists.
    given = scrub_secrets(run.given, known) or config | {"inputs_path": [p for p in inputs if p]}
    launch = launch_of(args)
    batch = global_batch(given, launch["processes"]) if hasattr(args, "gradient_accumulation_steps") else None
    found = inputs_of(given)
    _require_finished([*inputs, *found], Path(args.output_dir))
    return {
        "stage": stage,
        "status": "running",
        "fingerprint": run_fingerprint(stage, given, batch),
        "batch": batch,
        "command": shlex.join(scrub_secrets(["python", *sys.argv], known)),
        "config": config,
        "given": given,
        "inputs": found | {path: f"hub:{path}" for path in inputs if path and path not in found},
        "corpora": corpora_of(found),
        "code": code_digest(ROOT / "recipes" / f"{stage}.py", given),
        "commit": _commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": _hardware(),
        "launch": launch,
        "date": f"{date.today()}",  # that conversations bear, see `templates.fix_date`
        "metrics": {},
        "started": time.time(),
        "previous_seconds": 0.0,
    }


def _require_finished(paths: list[str | None], own: Path) -> None:
    """InputError if one of `paths` is the folder of an unfinished run other than that in `own`, or lies in one; a line for
    one that no longer holds what the run wrote."""
    for path in dict.fromkeys(filter(None, paths)):
        folder, manifest = run_of(Path(path)) or (own, None)
        if manifest is None or folder == own != Path(path):
            continue
        status, stage = manifest.get("status"), manifest["stage"]
        if not is_finished(manifest):
            but = " but lists no files: the run did not write that" if status == "finished" else ""
            raise InputError(
                f"{path}: the {stage} run that writes it has not finished (its manifest.json says {status!r}{but}); wait "
                "for it, or start it again"
            )
        gone, changed = altered_outputs(folder, manifest, Path(path))
        for files, how in ((gone, "gone"), (changed, "changed")):
            if files and int(os.environ.get("RANK", 0)) == 0:
                print(f"{path}: {files} {how} since its {stage} run finished; what is there now is read", flush=True)


def _to_json(config) -> dict:
    raw = config.to_dict() if hasattr(config, "to_dict") else asdict(config) if is_dataclass(config) else dict(config)
    return json.loads(json.dumps(raw, default=str))


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git on this machine
        return None


def _hardware() -> dict:
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    quota = find_quota()
    cores = {"cores": os.cpu_count()} | ({"cpu_quota": quota.cpus} if quota else {})
    return {"cpu": platform.processor() or platform.machine(), **cores, "accelerators": accelerators}
