"""Whether the disk has room for what a run writes, checked before anything is loaded."""

import json
import math
import os
import tempfile
from pathlib import Path

from llmrecipes.keys.settings import Problems, Settings


def room(s: Settings) -> Problems:
    """An `output_dir` that is not writable, or whose disk has too little space for the result."""
    if "output_dir" not in s.keys or "force" not in s.keys:
        return  # the stage has no output folder
    output_dir = s["output_dir"]
    if not output_dir:
        return
    path = Path(os.path.expanduser(output_dir)).absolute()
    if problem := leads_nowhere(path):
        yield "output_dir", f"{output_dir if len(output_dir) < 200 else output_dir[:200] + ' ...'} {problem}"
        return
    if path.exists() and not path.is_dir():
        yield "output_dir", f"{output_dir} is a file; name a folder"
        return
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        yield "output_dir", f"{existing} is a file, so there can be no folder below it"
        return
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".llmrecipes-"):
            pass
    except OSError as error:
        yield "output_dir", f"{output_dir}: nothing can be written below {existing} ({error.strerror})"
        return
    need, free = bytes_needed(s), os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize
    if need and free < need[0]:
        text = f"{output_dir}: {_size(free)} are free; the result and one checkpoint take about {_size(need[0])}"
        yield "output_dir", text


def leads_nowhere(path: Path) -> str:
    """What is wrong with the path of a folder that is to be made, whatever is there; empty if nothing is."""
    try:
        there, real = path.exists(), path.resolve()
        broken = next((part for part in (path, *path.parents) if part.is_symlink() and not part.exists()), None)
    except (OSError, RuntimeError) as error:  # a name of more than 255 bytes; RuntimeError: links in a circle
        return f"cannot be a folder ({getattr(error, 'strerror', None) or 'links that lead in a circle'}); name another"
    if broken:
        return f"leads through {broken}, a link to what is not there; make that folder, or remove the link"
    if not there and real.exists():  # once the missing folder is made, it is this one, and perhaps full of other work
        return f"is {real} by way of a folder that is not there; write it without `..`"
    return ""


def room_for_all(s: Settings) -> Problems:
    """A disk with space for one checkpoint, but not for all that will be kept."""
    need, output_dir = bytes_needed(s), s["output_dir"]
    if not need or not output_dir:
        return
    path = Path(output_dir).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = os.statvfs(existing).f_bavail * os.statvfs(existing).f_frsize
    if need[0] <= free < need[1]:
        text = f"{_size(free)} are free; all checkpoints together may take about {_size(need[1])}; set it lower"
        yield "save_total_limit", text


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def checkpoints_kept(s: Settings, steps: int | None) -> int | None:
    """Number of checkpoints that are left in the end of a run of `steps` (None: unknown); without `save_total_limit` every
    one is kept."""
    if s["save_strategy"] in ("no", False):
        return 0
    if limit := s["save_total_limit"]:
        return limit
    if s["save_strategy"] == "epoch" and not (s["max_steps"] and s["max_steps"] > 0):
        return math.ceil(s["num_train_epochs"])
    if s["save_strategy"] != "steps" or steps is None or not s["save_steps"]:
        return None
    every = s["save_steps"] if s["save_steps"] >= 1 else math.ceil(s["save_steps"] * steps)
    return math.ceil(steps / every)


def bytes_needed(s: Settings) -> tuple[float, float] | None:
    """(bytes of the result and one checkpoint, bytes with all checkpoints that are kept); None if unknown.

    A checkpoint holds 4 bytes of weights and, for AdamW, 8 bytes of moments per parameter. Those of LoRA runs are small.
    """
    path = s.values.get("model_name_or_path")
    if not s.trains or s["use_peft"] or not isinstance(path, str) or not os.path.isdir(path):
        return None
    parameters = sum(_count_parameters(file) for file in Path(path).glob("*.safetensors"))
    if not parameters:
        return None
    checkpoint = parameters * (4 if s["save_only_model"] else 12)
    kept = checkpoints_kept(s, s["max_steps"] if s["max_steps"] and s["max_steps"] > 0 else None)
    kept = 3 if kept is None else kept
    return parameters * 4 + min(kept, 1) * checkpoint, parameters * 4 + (kept + (kept > 0)) * checkpoint


def _count_parameters(file: Path) -> int:
    """Number of parameters from a safetensors file's header: 8 bytes of length, then JSON with each tensor's shape."""
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size)) if size < 1 << 27 else {}
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 0
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total
