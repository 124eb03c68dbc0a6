"""Which keys would make a run fit, tried in closed form."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from llmrecipes.config import InputError
from llmrecipes.keys.settings import COMMAND_LINE, Settings
from llmrecipes.plan.job import QUANTISED, Job, Lora
from llmrecipes.plan.memory import phases
from llmrecipes.preflight import contradictions
from llmrecipes.preflight.precedence import let_command_line_win

LAUNCH = "--accelerate_config"
MOST = 3  # settings that are offered together
Keys = dict[str, object]


def peak(job: Job, gpu_bytes: float) -> float:
    """Peak bytes over all phases."""
    return max(sum(parts.values()) for parts in phases(job, gpu_bytes).values())


def keys_that_help(
    s: Settings, job: Job, gpu_bytes: float, room: float, read: Callable[[Settings, str | None], Job]
) -> tuple[list[str], float]:
    """(at most MOST settings, each as `key: value`; bytes with all of them). Greedy: takes the cheapest setting that makes
    it fit, otherwise the one that saves most, and repeats. None contradicts the stage's settings `s`.

    read: (changed settings, the launch config that is offered or None) -> the job that they describe; may raise InputError.
    """
    chosen: dict[str, Keys] = {}  # by its first key; a later setting of that key takes the place of the earlier one
    merged = lambda *more: {key: value for entry in (*chosen.values(), *more) for key, value in entry.items()}
    refused: list[Keys] = []
    while (now := peak(job, gpu_bytes)) > room:
        tried = [(keys, peak(changed, gpu_bytes)) for keys, changed in _changes(job) if keys not in refused]
        tried = [
            (keys, size)
            for keys, size in tried
            if size < 0.98 * now
            and (len(chosen) < MOST or next(iter(keys)) in chosen)
            and _is_allowed(s, with_keys(s, merged(keys)))
        ]
        if not tried:
            break
        fitting = (entry for entry in tried if entry[1] <= room)
        keys, _ = next(fitting, min(tried, key=lambda entry: entry[1]))
        after = _read_again(s, merged(keys), read)  # what is promised is the plan of the changed settings
        if after is None or peak(after, gpu_bytes) >= now:
            refused.append(keys)
            continue
        job, chosen[next(iter(keys))] = after, keys
    return [_text(keys) for keys in chosen.values()], peak(job, gpu_bytes)


def with_keys(s: Settings, keys: Keys) -> Settings:
    """The settings with `keys` given on the command line."""
    given = {key: value for key, value in keys.items() if key != LAUNCH}
    where = s.where | dict.fromkeys(given, COMMAND_LINE)
    changed = replace(s, values=s.values | given, where=where, dropped=set(s.dropped))
    let_command_line_win(changed)
    return changed


def _is_allowed(s: Settings, changed: Settings) -> bool:
    """Whether the stage takes the settings as `changed`."""
    return set(contradictions(changed)) <= set(contradictions(s))


def _read_again(s: Settings, keys: Keys, read: Callable[[Settings, str | None], Job]) -> Job | None:
    try:
        return read(with_keys(s, keys), keys.get(LAUNCH))
    except InputError:  # of a rollout that such batches do not fill, say
        return None


def _text(keys: Keys) -> str:
    written = {key: str(value).lower() if isinstance(value, bool) else value for key, value in keys.items()}
    first, *others = [f"{key} {value}" if key == LAUNCH else f"{key}: {value}" for key, value in written.items()]
    remark = " (longer rows are cut or left out)" if "max_length" in keys else ""
    return first + (" with " + " and ".join(others) if others else "") + remark


def _changes(job: Job) -> Iterator[tuple[Keys, Job]]:
    """(settings, the job with them), starting with those that change the run least."""
    r = job.rollouts
    grouped = r is not None and job.head == "chunked"  # GRPO decodes all responses of a rollout at once
    yield from _smaller_batches(job, grouped)
    if job.whole and job.head == "logits":
        yield {"fused_lm_head": True}, job.changed(head="chunked")
    if not job.checkpointing:
        yield {"activation_checkpointing": True}, job.changed(checkpointing=True)
    if r and not grouped and r.decoded > 1:
        fewer = max(1, r.decoded // 4)
        yield {"per_device_generation_batch_size": fewer}, job.changed(rollouts=replace(r, decoded=fewer))
    if r and not grouped and not r.offload and not job.sharded:
        yield {"offload_frozen_models": True}, job.changed(rollouts=replace(r, offload=True))
    if job.gpus > 1 and job.sharded < 3 and not (r and r.offload) and not job.quantised:
        yield {LAUNCH: "configs/accelerate/fsdp2.yaml"}, job.changed(sharded=3)
    if not job.lora and not job.whole:
        lora = Lora(16, frozenset(job.architecture.linear_sizes), 0.05)
        rollouts = r and replace(r, reference_bytes=0, separate_value=r.separate_value and r.keeps_value)
        changed = job.changed(lora=lora, has_reference=False, rollouts=rollouts)
        modules = f"[{', '.join(job.architecture.linear_sizes)}]" if job.architecture.experts else "all-linear"
        yield {"use_peft": True, "lora_target_modules": modules}, changed
    if job.lora and job.weight_bytes == 4 and not job.quantised:
        yield {"dtype": "bfloat16"}, job.changed(weight_bytes=2)
    if job.lora and not job.quantised and job.sharded < 3:  # QLoRA on sharded weights was not tried
        keys: Keys = {"load_in_4bit": True} | ({"dtype": "bfloat16"} if job.weight_bytes == 4 else {})
        yield keys, job.changed(weight_bytes=2, quantised=QUANTISED["load_in_4bit"])
    if not r and job.length > 256:
        yield {"max_length": job.length // 2}, job.changed(length=job.length // 2)


def _smaller_batches(job: Job, grouped: bool) -> Iterator[tuple[Keys, Job]]:
    """Smaller micro-batches at the same number of rows a step, and of responses a rollout."""
    batch = job.batch
    while batch > 1:
        batch = max(n for n in range(1, batch) if batch % n == 0)
        accumulation = job.accumulation * job.batch // batch
        keys: Keys = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        changed = job.changed(batch=batch, accumulation=accumulation)
        if grouped:
            yield keys | {"steps_per_generation": job.rollouts.decoded // batch}, changed
        yield keys, changed  # in GRPO, where generation_batch_size says how large a rollout is
