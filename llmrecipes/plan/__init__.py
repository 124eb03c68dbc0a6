"""What a YAML will need, before renting a GPU: memory, whether it fits, time, price, disk.

The closed form reads only configs and answers in a second (`memory`, `work`); `trace` runs the step on fake tensors. What
is unknown is named, not guessed.
"""

from pathlib import Path

import yaml

from llmrecipes.config import InputError, nearest
from llmrecipes.keys.settings import Settings
from llmrecipes.manifest import ROOT
from llmrecipes.plan.advice import keys_that_help
from llmrecipes.plan.job import Job, model_config, read_job
from llmrecipes.plan.lookup import find_config
from llmrecipes.plan.memory import phases
from llmrecipes.plan.topology import num_processes
from llmrecipes.plan.work import count_work, disk, summarise
from llmrecipes.preflight import keys_of_batch

GPUS = Path(__file__).parent / "gpus.yaml"
BESIDE_THE_STEP = ("reward model", "vLLM", "DDP buckets")  # parts of the memory that no trace of a step can show
USABLE = 0.92  # share of a GPU's memory; the rest is CUDA's context and fragmentation


def read_gpu(name: str) -> dict:
    """memory (GB), tflops, bandwidth (GB/s) and source of the GPU `name` in gpus.yaml; InputError with the names there."""
    gpus = yaml.safe_load(GPUS.read_text(encoding="utf-8"))
    if name.lower() not in gpus:
        raise InputError(f"gpu: {name} is not one of {', '.join(gpus)}{nearest(name.lower(), gpus)}")
    return {"name": name.lower(), **gpus[name.lower()]}


def make_plan(
    s: Settings,
    config_file: str | None,
    gpu: str = "h100",
    num_gpus: int | None = None,
    price: float | None = None,
    mfu: float = 0.4,
    accelerate_config: str | None = None,
    train_rows: int | None = None,
    prompt_tokens: int | None = None,
) -> dict:
    """Everything known about a run beforehand, JSON-serialisable: sizes in bytes, `price` in the currency of the given price
    per GPU hour."""
    device, gpus = read_gpu(gpu), num_gpus or s["num_gpus"] or num_processes(accelerate_config) or 1
    job = read_job(s, config_file, gpus, accelerate_config, prompt_tokens)
    _refuse_idle_options(s, job, train_rows, prompt_tokens)
    memory, whole = device["memory"] * 1e9, device["memory"] * 1e9 * USABLE
    unknown, a = [*job.unknown, *_reservations(s, job, memory, accelerate_config)], job.architecture
    found = phases(job, memory)
    peak = max(sum(parts.values()) for parts in found.values())
    work = summarise(count_work(s, job, train_rows, unknown), device, gpus, mfu, price)
    read = lambda changed, launch: read_job(
        changed, config_file, gpus, str(ROOT / launch) if launch else accelerate_config, prompt_tokens
    )
    keys, with_keys = keys_that_help(s, job, memory, whole, read) if peak > whole else ([], peak)
    result, checkpoints, free = disk(s, job, work["steps"], unknown)
    r = job.rollouts
    value = r.value.trunk + r.value.hidden if r and r.separate_value else 0
    return {
        "config": config_file,
        "gpu": device,
        "num_gpus": gpus,
        "global_batch_size": job.batch * job.accumulation * gpus,
        "parameters": {"all": a.parameters + value, "trained": job.trained + value, "active": a.active},
        "memory": found,
        "peak": peak,
        "usable": whole,
        "fits": peak <= whole,
        "would_fit_with": keys,
        "peak_with": with_keys,
        "fits_with": with_keys <= whole,
        **work,
        "disk": {"result": result, "checkpoints": checkpoints, "free": free},
        "unknown": unknown,
    }


def _reservations(s: Settings, job: Job, memory: float, accelerate_config: str | None) -> list[str]:
    """What a plan for GPUs of so much `memory` in bytes does not know, or what the launch would do otherwise."""
    unknown, gpus = [], job.gpus
    if s["trust_remote_code"]:
        unknown.append("trust_remote_code: what the repository's own code adds")
    if job.compute_bytes == 4:
        unknown.append("bf16: off: hours and price are those of the GPU's bf16 peak; products in float32 take longer")
    started = num_processes(accelerate_config) or gpus
    if started != gpus:
        unknown.append(
            f"accelerate_config: starts {started} processes, planned are {gpus}; launch with --num_processes {gpus}"
        )
    rows_a_step, meant = job.batch * job.accumulation * gpus, s["global_batch_size"]
    if meant and rows_a_step != meant:
        how = keys_of_batch(meant, job.batch, gpus) or "another number of GPUs"
        unknown.append(f"global_batch_size: the YAML means {meant} rows a step, planned are {rows_a_step}; keep it by {how}")
    if job.rollouts and job.rollouts.vllm * memory < job.rollouts.vllm_weights:
        unknown.append(
            f"vllm_gpu_memory_utilization: {job.rollouts.vllm} of this GPU does not hold the engine's weights "
            f"({job.rollouts.vllm_weights / 2**30:.1f} GiB), so vLLM will not start; they are counted whole"
        )
    return unknown


def _refuse_idle_options(s: Settings, job: Job, train_rows: int | None, prompt_tokens: int | None) -> None:
    """InputError if the number of rows or of a prompt's tokens is given and decides nothing, or a prompt is too long."""
    limit = next((key for key in ("max_steps", "total_episodes") if (s[key] or 0) > 0), None)
    if train_rows and limit:
        raise InputError(
            f"train_rows: has no effect beside `{limit}: {s[limit]}`; give num_train_epochs instead of that, or leave it out"
        )
    if not prompt_tokens:
        return
    if job.rollouts is None or s["max_prompt_length"]:
        why = f"beside `max_prompt_length: {s['max_prompt_length']}`" if job.rollouts else "on a stage that samples nothing"
        raise InputError(f"prompt_tokens: has no effect {why}; leave it out")
    if job.architecture.context and job.length > job.architecture.context:
        raise InputError(
            f"prompt_tokens: {prompt_tokens} and responses of {job.rollouts.response} are more than the model's context of "
            f"{job.architecture.context} tokens; give fewer"
        )


def traced(plan: dict, s: Settings, accelerate_config: str | None, prompt_tokens: int | None = None) -> dict[str, float]:
    """Part -> bytes of a training step, measured by torch's memory tracker (slow: imports torch), and those parts of `plan`
    that take no part in the step."""
    from llmrecipes.plan.trace import trace

    beside = Path(plan["config"]).parent if plan["config"] else None
    job: Job = read_job(s, plan["config"], plan["num_gpus"], accelerate_config, prompt_tokens)
    path = s["value_model_name_or_path"] or s["reward_model_name_or_path"]
    value = find_config(path, "value_model_name_or_path", None, beside)[0] if path else None
    found = trace(job, model_config(s, beside)[0], value)
    closed = plan["memory"].get("update") or plan["memory"]["training step"]
    others = {f"{part} as planned": closed[part] for part in BESIDE_THE_STEP if part in closed}
    return found | others | {"Total": found["Total"] + sum(others.values())}
