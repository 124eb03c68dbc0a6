"""The plan of a finished run, to compare with what it took: for its manifest, card and report."""

import sys
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.keys import recipe_keys
from llmrecipes.keys.settings import Settings
from llmrecipes.keys.values import check_value
from llmrecipes.plan.job import read_job
from llmrecipes.plan.memory import phases
from llmrecipes.plan.table import GIB
from llmrecipes.plan.work import count_work

GPU_BYTES = 80e9  # memory of the GPU of which vLLM takes its share
SHARDED = {"FSDP": 3, "ZeRO-3": 3, "ZeRO-2": 2, "ZeRO-1": 1}  # `Job.sharded`


def plan_of_run(manifest: dict, recipe: Path) -> dict | None:
    """{"phase", "memory_gib": part -> GiB of one GPU in that phase, "peak_gib", "flops" or None, "unknown"} for the run of
    `manifest`, in its phase with the highest peak; None for a stage or model that cannot be planned."""
    keys, launch = recipe_keys(recipe), manifest["launch"]
    try:
        given = {key: check_value(key, value, keys[key], key) for key, value in manifest["given"].items() if key in keys}
        settings = Settings(given, {}, keys)
        job = read_job(settings, None, launch["processes"], None)
        job = job.changed(sharded=SHARDED.get(launch["sharding"], 0))
        unknown = list(job.unknown)
        work = count_work(settings, job, None, unknown)
        phase, parts = max(phases(job, GPU_BYTES).items(), key=lambda item: sum(item[1].values()))
    except InputError:
        return None
    except Exception as error:  # a sum for the card must not end a run whose work is done
        print(f"plan: cannot be made for this run ({type(error).__name__}: {error})", file=sys.stderr)
        return None
    return {
        "phase": phase,
        "memory_gib": {part: round(size / GIB, 4) for part, size in parts.items() if size},
        "peak_gib": round(sum(parts.values()) / GIB, 4),
        "flops": sum(work.flops.values()) or None,
        "unknown": unknown,
    }
