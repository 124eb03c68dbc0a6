"""How much there is to compute: tokens, FLOPs, hours, price, and what a run writes to disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from llmrecipes.keys.settings import Settings
from llmrecipes.plan.architecture import Architecture
from llmrecipes.plan.job import Job
from llmrecipes.plan.memory import weights_bytes


@dataclass(frozen=True)
class Work:
    """Steps and tokens of the whole run (None: unknown); FLOPs, and the minimum seconds allowed by memory bandwidth, by
    phase and in total, on one GPU."""

    steps: int | None
    tokens: int | None
    flops: dict[str, float]
    bandwidth_bytes: dict[str, float]


def count_work(s: Settings, job: Job, rows: int | None, unknown: list[str]) -> Work:
    """The work of a run on `rows` training examples; if not given, rows of local files are counted."""
    a = job.architecture
    steps, per_step = _steps(s, job, rows, unknown), job.batch * job.accumulation * job.gpus
    if steps is None:
        return Work(None, None, {}, {})
    if job.rollouts is None:
        tokens = steps * per_step * job.rows * job.length
        passes = 1 + (1 if job.lora else 2) + job.checkpointing + job.more_passes
        return Work(steps, tokens, {"training": tokens * passes * forward_flops(a, job.length)}, {})
    return _rollout_work(job, steps)


def forward_flops(a: Architecture, length: int) -> float:
    """FLOPs of a token's forward pass in a row of `length`: 2 per weight (multiply and add), plus attention as in MFU (not
    halved for causality)."""
    return 2 * a.active + 4 * a.layers * a.query * length


def _rollout_work(job: Job, steps: int) -> Work:
    a, r = job.architecture, job.rollouts
    rollouts = steps / (r.epochs * r.responses / (job.batch * job.accumulation * job.gpus))
    samples = rollouts * r.responses
    each, of_value = forward_flops(a, job.length), forward_flops(r.value, job.length)
    tokens = samples * job.length
    backward = 1 if job.lora else 2
    update = (1 + backward + job.checkpointing) * each + r.separate_value * (3 + job.checkpointing) * of_value
    reading = r.readings * each + r.separate_value * of_value
    flops = {
        "sampling": tokens * each,
        "scoring": tokens * forward_flops(r.reward, job.length) if r.reward else 0.0,
        "log-probabilities and values": tokens * reading,
        "update": r.epochs * tokens * update,
    }
    # Each decoding step reads all weights and the KV cache so far of every response.
    decodings = samples / r.decoded * r.response
    cache = 4 * a.layers * a.key * r.decoded * (r.prompt + r.response / 2)
    return Work(steps, int(tokens), flops, {"sampling": decodings * (weights_bytes(job) + cache)})


def _steps(s: Settings, job: Job, rows: int | None, unknown: list[str]) -> int | None:
    """Number of optimizer steps; None, with a reason in `unknown`, if the data do not tell."""
    per_step = job.batch * job.accumulation * job.gpus
    if s["max_steps"] and s["max_steps"] > 0:
        return s["max_steps"]
    if job.rollouts and s["total_episodes"]:
        r = job.rollouts
        return -(-s["total_episodes"] // r.responses) * r.epochs * (r.responses // per_step)
    if rows is None:
        counted = [_count(source) for source in s["datasets"] or []]
        rows = None if None in counted or not counted else sum(counted)
    if rows is None:
        unknown.append("steps, tokens, hours and price: nobody has counted the data's rows; give --train_rows or max_steps")
        return None
    if job.head == "logits" and s["model_config"] or "muon_learning_rate" in s.keys or s["packing"]:
        unknown.append("steps: rows are packed into blocks, so fewer or more of them are taken than there are rows")
    steps = s["num_train_epochs"] * rows / per_step
    if job.rollouts:
        steps *= job.rollouts.epochs * (s["num_generations"] or 1)
    if "desirable_weight" in s.keys:
        unknown.append("steps: a pair of answers counts as one row here, and is two for KTO")
    return max(1, round(steps))


def _count(source) -> int | None:
    """Rows of a local JSONL file, at most `max_rows`; None for data that would have to be downloaded or made first."""
    source = {"path": source} if isinstance(source, str) else source
    if source.get("max_rows"):
        return source["max_rows"]
    path = Path(source.get("path", ""))
    if path.suffix != ".jsonl" or not path.is_file() or "[" in source.get("split", ""):
        return None
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def disk(s: Settings, job: Job) -> tuple[float, float, float]:
    """Bytes of (the result, all checkpoints kept at one time, free space at output_dir)."""
    a = job.architecture
    weights = 4 * job.lora.parameters(a) if job.lora else weights_bytes(job)
    trained = job.trained
    if job.rollouts and job.rollouts.separate_value:
        value = job.rollouts.value.trunk + job.rollouts.value.hidden
        weights, trained = weights + 4 * value, trained + value
    checkpoint = weights + (0 if s["save_only_model"] else (job.optimizer or 0) * trained)
    kept = 0 if s["save_strategy"] in ("no", False) else (s["save_total_limit"] or 3)
    path = Path(s["output_dir"] or ".").absolute()
    place = os.statvfs(next(parent for parent in (path, *path.parents) if parent.exists()))
    return weights, (kept + (kept > 0)) * checkpoint, place.f_bavail * place.f_frsize


def summarise(work: Work, gpu: dict, gpus: int, mfu: float, price: float | None) -> dict:
    """Hours by phase and in total, and their cost, at `mfu` of the GPU's peak; sampling takes at least the time needed to
    read weights and cache from memory."""
    if work.steps is None:
        return {"steps": None}
    hours = {}
    for phase, flops in work.flops.items():
        seconds = flops / (gpus * mfu * gpu["tflops"] * 1e12)
        least = work.bandwidth_bytes.get(phase, 0) / (gpus * gpu["bandwidth"] * 1e9)
        hours[phase] = max(seconds, least) / 3600
    total = sum(hours.values())
    return {
        "steps": work.steps, "tokens": work.tokens, "flops": sum(work.flops.values()), "mfu": mfu, "hours": total,
        "hours_by_phase": hours, "price": price and total * gpus * price,
    }  # fmt: skip
