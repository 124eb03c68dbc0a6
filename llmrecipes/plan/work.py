"""How much there is to compute: tokens, FLOPs, hours, price, and what a run writes to disk."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from llmrecipes.keys.settings import Settings
from llmrecipes.plan.architecture import Architecture
from llmrecipes.plan.job import Job
from llmrecipes.plan.memory import weights_bytes
from llmrecipes.plan.packing import first_lengths
from llmrecipes.plan.rows import count_rows
from llmrecipes.preflight.disk import checkpoints_kept

Lengths = Callable[[], list[int] | None]  # of `first_lengths`, read once


@dataclass(frozen=True)
class Work:
    """Steps and tokens of the whole run (None: unknown); FLOPs, and the minimum seconds allowed by memory bandwidth, by
    phase and in total, on one GPU."""

    steps: int | None
    tokens: int | None
    flops: dict[str, float]
    bandwidth_bytes: dict[str, float]
    rows: list[str] = field(default_factory=list)  # of each source that was counted, and by what


def count_work(s: Settings, job: Job, rows: int | None, unknown: list[str]) -> Work:
    """The work of a run on `rows` training examples; if not given, rows of local files are counted."""
    a, counted = job.architecture, []
    # Only where asked for: a tokenizer is loaded.
    lengths = cache(lambda: first_lengths(s, None if _pretrains(s) else job.length))
    steps, per_step = _steps(s, job, rows, unknown, counted, lengths), job.batch * job.accumulation * job.gpus
    if steps is None:
        return Work(None, None, {}, {}, counted)
    if job.rollouts is None:
        tokens = steps * per_step * job.rows * job.length
        passes = 1 + (1 if job.lora else 2) + job.checkpointing + job.more_passes
        seen = _attended(s, job, lengths, unknown)
        each = forward_flops(a, seen, 0 if job.head == "score" else 1)
        return Work(steps, tokens, {"training": tokens * passes * each}, {}, counted)
    return _rollout_work(job, steps, counted)


def _pretrains(s: Settings) -> bool:
    return "muon_learning_rate" in s.keys


def _attended(s: Settings, job: Job, lengths: Lengths, unknown: list[str]) -> float:
    """Tokens over which a token's attention is computed: its row's or, where the documents of a block are kept apart without
    a mask and their `lengths` are known, its document's, on average over all tokens."""
    packs = s["packing"] and s["packing_strategy"] != "wrapped" and not job.flattened
    apart = packs or s["reset_attention"] and not job.padded
    if not apart or not (known := lengths()):
        return job.length
    parts = [part for n in known for part in [job.length] * (n // job.length) + [n % job.length]]
    seen = sum(part * part for part in parts) / sum(parts)
    unknown.append(f"attention: over {seen:,.0f} tokens, as a token's document has among the first rows, not a whole block")
    return seen


def forward_flops(a: Architecture, length: float, head: float = 1.0) -> float:
    """FLOPs of a token's forward pass in a row of `length`: 2 per weight (multiply and add), plus attention as in MFU (not
    halved for causality). `head` is the share of tokens that the LM head reads: none in a classifier."""
    return 2 * (a.active_in_layers + head * a.embedding) + 4 * a.layers * a.query * length


def _rollout_work(job: Job, steps: int, counted: list[str]) -> Work:
    a, r = job.architecture, job.rollouts
    rollouts = steps / (r.epochs * r.responses / (job.batch * job.accumulation * job.gpus))
    samples = rollouts * r.responses
    each = forward_flops(a, job.length, r.response / job.length)  # the LM head reads responses alone
    of_value = forward_flops(r.value, job.length, 0)
    tokens = samples * job.length
    backward = 1 if job.lora else 2
    update = (1 + backward + job.checkpointing) * each + r.separate_value * (3 + job.checkpointing) * of_value
    reading = r.readings * each + r.separate_value * of_value
    flops = {
        "sampling": tokens * each,
        "scoring": tokens * forward_flops(r.reward, job.length, 0) if r.reward else 0.0,
        "log-probabilities and values": tokens * reading,
        "update": r.epochs * tokens * update,
    }
    # Each decoding step reads all weights and the KV cache so far of every response.
    decodings = samples / r.decoded * r.response
    cache = 4 * a.layers * a.key * r.decoded * (r.prompt + r.response / 2)
    return Work(steps, int(tokens), flops, {"sampling": decodings * (weights_bytes(job) + cache)}, counted)


def _steps(s: Settings, job: Job, rows: int | None, unknown: list[str], counted: list[str], lengths: Lengths) -> int | None:
    """Number of optimizer steps; None, with a reason in `unknown`, if the data do not tell."""
    per_step = job.batch * job.accumulation * job.gpus
    if s["max_steps"] and s["max_steps"] > 0:
        return s["max_steps"]
    r, epochs = job.rollouts, s["num_train_epochs"]
    if r and s["total_episodes"]:
        return -(-s["total_episodes"] // r.responses) * r.epochs * (r.responses // per_step)
    if rows is None:
        rows, told = count_rows(s, unknown)
        counted += told
        rows = rows and _packed(s, job, rows, lengths, unknown)
    if rows is None:
        unknown.append("steps, tokens, hours and price: they follow from the rows; give --train_rows or max_steps")
        return None
    if "desirable_weight" in s.keys:
        unknown.append("steps: a pair of answers counts as one row here, and is two for KTO")
    if r:  # prompts that fill no whole rollout wait for the next epoch
        rollouts = rows * (s["num_generations"] or 1) // r.responses
        if not rollouts:
            unknown.append(f"steps, hours and price: {rows:,} prompts fill no rollout of {r.responses:,} responses")
            return None
        return math.ceil(epochs * rollouts * r.epochs * r.responses / per_step)
    batches = rows / (job.batch * job.gpus)
    batches = int(batches) if s["dataloader_drop_last"] else math.ceil(batches)
    return math.ceil(epochs * max(1, math.ceil(batches / job.accumulation)))


def _packed(s: Settings, job: Job, rows: int, lengths: Lengths, unknown: list[str]) -> int | None:
    """The number of blocks of `job.length` tokens that `rows` fill if the stage packs them; otherwise `rows`."""
    if not (_pretrains(s) or s["packing"]):
        return rows
    block = f"blocks of {job.length:,} tokens"
    if known := lengths():
        tokens = sum(known) / len(known)
        blocks = max(1, int(rows * tokens / job.length))
        unknown.append(
            f"steps: the rows fill {blocks:,} {block} if all have {tokens:,.0f} tokens as the first have (without a chat "
            "template); otherwise give --train_rows, the number of blocks"
        )
        return blocks
    more = "" if _pretrains(s) else "; a block for each row is counted"
    unknown.append(f"steps: how many {block} the rows fill is not known here; give --train_rows, that number{more}")
    return None if _pretrains(s) else rows


def disk(s: Settings, job: Job, steps: int | None, unknown: list[str]) -> tuple[float, float, float]:
    """Bytes of (the result, all checkpoints kept at one time in a run of `steps`, free space at output_dir)."""
    a = job.architecture
    weights = 4 * job.lora.parameters(a) if job.lora else weights_bytes(job)
    trained = job.trained
    if job.rollouts and job.rollouts.separate_value:
        value = job.rollouts.value.trunk + job.rollouts.value.hidden
        weights, trained = weights + 4 * value, trained + value
    checkpoint = weights + (0 if s["save_only_model"] else (job.optimizer or 0) * trained)
    kept = checkpoints_kept(s, steps)
    if kept is None:
        kept = 3
        unknown.append("save_total_limit: not given, so every checkpoint is kept; how many is not known, three are counted")
    path = Path(s["output_dir"] or ".").absolute()
    place = os.statvfs(next(parent for parent in (path, *path.parents) if parent.exists()))
    return weights, (kept + (kept > 0)) * checkpoint, place.f_bavail * place.f_frsize


def summarise(work: Work, gpu: dict, gpus: int, mfu: float, price: float | None) -> dict:
    """Hours by phase and in total, and their cost, at `mfu` of the GPU's peak; sampling takes at least the time needed to
    read weights and cache from memory."""
    if work.steps is None:
        return {"steps": None, "rows": work.rows}
    hours = {}
    for phase, flops in work.flops.items():
        seconds = flops / (gpus * mfu * gpu["tflops"] * 1e12)
        least = work.bandwidth_bytes.get(phase, 0) / (gpus * gpu["bandwidth"] * 1e9)
        hours[phase] = max(seconds, least) / 3600
    total = sum(hours.values())
    return {
        "rows": work.rows, "steps": work.steps, "tokens": work.tokens, "flops": sum(work.flops.values()), "mfu": mfu,
        "hours": total, "hours_by_phase": hours, "price": price and total * gpus * price,
    }  # fmt: skip
