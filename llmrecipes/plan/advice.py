"""Which keys would make a run fit, tried in closed form."""

from collections.abc import Iterator
from dataclasses import replace

from llmrecipes.plan.job import QUANTISED, Job, Lora
from llmrecipes.plan.memory import phases


def peak(job: Job, gpu_bytes: float) -> float:
    """Peak bytes over all phases."""
    return max(sum(parts.values()) for parts in phases(job, gpu_bytes).values())


def keys_that_help(job: Job, gpu_bytes: float, room: float, most: int = 3) -> tuple[list[str], float]:
    """(at most `most` settings, each as `key: value`; bytes with all of them). Greedy: takes the cheapest setting that makes
    it fit, otherwise the one that saves most, and repeats."""
    chosen = []
    while len(chosen) < most and peak(job, gpu_bytes) > room:
        tried = [(text, changed, peak(changed, gpu_bytes)) for text, changed in _changes(job)]
        tried = [entry for entry in tried if entry[2] < 0.98 * peak(job, gpu_bytes)]
        if not tried:
            break
        text, job, _ = next((entry for entry in tried if entry[2] <= room), min(tried, key=lambda entry: entry[2]))
        chosen.append(text)
    return chosen, peak(job, gpu_bytes)


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    """(setting, the job with it), starting with those that change the run least."""
    batch, r = job.batch, job.rollouts
    grouped = r is not None and job.head == "chunked"  # GRPO decodes all responses of a rollout at once
    while batch > 1:
        batch = max(n for n in range(1, batch) if batch % n == 0)
        accumulation = job.accumulation * job.batch // batch
        text = f"per_device_train_batch_size: {batch} with gradient_accumulation_steps: {accumulation}"
        text += f" and steps_per_generation: {r.decoded // batch}" if grouped else ""
        yield text, job.changed(batch=batch, accumulation=accumulation)
    if job.whole and job.head == "logits":
        yield "fused_lm_head: true", job.changed(head="chunked")
    if not job.checkpointing:
        yield "activation_checkpointing: true", job.changed(checkpointing=True)
    if r and not grouped and r.decoded > 1:
        fewer = max(1, r.decoded // 4)
        yield f"per_device_generation_batch_size: {fewer}", job.changed(rollouts=replace(r, decoded=fewer))
    if r and not grouped and not r.offload and not job.sharded:
        yield "offload_frozen_models: true", job.changed(rollouts=replace(r, offload=True))
    if job.gpus > 1 and job.sharded < 3 and not (r and r.offload):
        yield "--accelerate_config configs/accelerate/fsdp2.yaml", job.changed(sharded=3)
    if not job.lora and not job.whole:
        lora = Lora(16, frozenset(job.architecture.linear_sizes), 0.05)
        rollouts = r and replace(r, reference_bytes=0, separate_value=r.separate_value and r.keeps_value)
        yield (
            "use_peft: true with lora_target_modules: all-linear",
            job.changed(lora=lora, has_reference=False, rollouts=rollouts),
        )
    if job.lora and job.weight_bytes == 4 and not job.quantised:
        yield "dtype: bfloat16", job.changed(weight_bytes=2)
    if job.lora and not job.quantised:
        text = "load_in_4bit: true" + " with dtype: bfloat16" * (job.weight_bytes == 4)
        yield text, job.changed(weight_bytes=2, quantised=QUANTISED["load_in_4bit"])
    if not r and job.length > 256:
        yield f"max_length: {job.length // 2} (longer rows are cut or left out)", job.changed(length=job.length // 2)
