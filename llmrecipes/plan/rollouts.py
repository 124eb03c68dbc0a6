"""PPO's and GRPO's rollouts in numbers: prompts, responses, and the models beside the policy."""

from dataclasses import dataclass
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.keys.settings import Settings
from llmrecipes.plan.architecture import Architecture, read_architecture
from llmrecipes.plan.lookup import find_config

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Rollouts:
    """PPO and GRPO: tokens of a prompt and a response, responses decoded at a time, and the other models."""

    prompt: int
    response: int
    decoded: int
    responses: int  # in a rollout, over all GPUs
    epochs: int
    separate_value: bool
    value: Architecture
    reward: Architecture | None
    reward_bytes: int
    reference_bytes: int
    chunk: int | None
    temperature: float
    offload: bool
    vllm: float  # share of the GPU's memory
    vllm_weights: float = 0.0  # bytes of the engine's own copy of the weights, which that share must hold
    served: bool = False  # responses come from a vLLM server on other GPUs
    keeps_value: bool = False  # the value model is the user's choice, which LoRA does not change
    readings: int = 2  # forward passes that score the responses: the policy's own and the reference's


def read_rollouts(
    s: Settings, a: Architecture, gpus: int, beside: Path | None, lora: bool, weight_bytes: int, prompt_tokens: int | None,
    unknown: list[str],
) -> Rollouts:  # fmt: skip
    """The rollouts of PPO or GRPO on so many `gpus`; what is not known goes to `unknown`.

    Raises:
        InputError: the run would refuse them, or a model's config is out of reach.
    """
    reward = None
    if path := s["reward_model_name_or_path"]:
        reward = read_architecture(*find_config(path, "reward_model_name_or_path", None, beside))
    if s["reward_functions"]:
        unknown.append("reward_functions: what they take of time and memory")
    prompt = _longest_prompt(s, a, prompt_tokens, unknown)
    engine, served = (s["use_vllm"] and s["vllm_mode"] == mode for mode in ("colocate", "server"))
    if served:
        unknown.append("vllm_mode: server: its GPUs are not in memory and price, and sampling is timed as if done on these")
    rewarded = {
        "served": bool(served),
        "vllm": s["vllm_gpu_memory_utilization"] if engine else 0.0,
        "vllm_weights": 2 * a.parameters / (s["vllm_tensor_parallel_size"] or 1) if engine else 0.0,
        "prompt": prompt,
        "response": s["max_completion_length"],
        "reward": reward,
        "temperature": s["temperature"],
        "reward_bytes": BYTES.get(str(s["reward_model_dtype"] or s["dtype"]), 4),
    }
    micro, accumulation = s["per_device_train_batch_size"], s["gradient_accumulation_steps"]
    if "num_iterations" in s.keys:
        return _groups(s, a, gpus, lora, weight_bytes, rewarded)
    path, minibatch = s["value_model_name_or_path"], micro * accumulation * gpus
    responses = s["rollout_batch_size"] or minibatch * (s["num_mini_batches"] or 1)
    _check_rollout(s, "rollout_batch_size", responses, minibatch, gpus)
    value = read_architecture(*find_config(path, "value_model_name_or_path", None, beside)) if path else reward or a
    return Rollouts(
        **rewarded,
        decoded=min(s["per_device_generation_batch_size"], responses // gpus),
        epochs=s["num_ppo_epochs"],
        value=value,
        responses=responses,
        separate_value=(s["value_model"] or ("shared" if lora and not path else "separate")) == "separate",
        keeps_value=bool(s["value_model"] or path),
        reference_bytes=0 if lora else BYTES.get(str(s["ref_model_dtype"]), weight_bytes),
        chunk=s["logprob_chunk_size"],
        offload=bool(s["offload_frozen_models"]),
        readings=1 if s["old_logprobs"] == "sampler" else 2,
    )


def _groups(s: Settings, a: Architecture, gpus: int, lora: bool, weight_bytes: int, rewarded: dict) -> Rollouts:
    """GRPO's rollouts, whose rewards, prompts and engine are `rewarded`."""
    micro, accumulation = s["per_device_train_batch_size"], s["gradient_accumulation_steps"]
    responses = s["generation_batch_size"] or micro * (s["steps_per_generation"] or accumulation) * gpus
    _check_rollout(s, "generation_batch_size", responses, micro * gpus, gpus)
    again = accumulation % (s["num_iterations"] * (responses // (micro * gpus) or 1)) != 0 or s["use_vllm"]
    return Rollouts(
        **rewarded,
        decoded=max(1, responses // gpus),
        responses=responses,
        epochs=s["num_iterations"],
        value=a,
        separate_value=False,
        reference_bytes=0 if lora else weight_bytes,
        chunk=None,
        offload=False,
        readings=bool(again) + bool(s["beta"]),
    )


def _longest_prompt(s: Settings, a: Architecture, prompt_tokens: int | None, unknown: list[str]) -> int:
    """Tokens of a prompt: as many as the keys, `prompt_tokens` and the context allow, as in the run."""
    if not s["max_completion_length"]:
        raise InputError("max_completion_length: how long responses may be is not given; set it")
    engine = s["vllm_max_model_length"] if s["use_vllm"] else None
    context = min(filter(None, (a.context, engine)), default=None)
    room = (context or 2 * s["max_completion_length"]) - s["max_completion_length"]
    if room < 1:
        what = f"vllm_max_model_length, {engine}" if context == engine else f"the context of {context}"
        raise InputError(f"max_completion_length: {s['max_completion_length']} leaves no room for a prompt in {what}")
    if s["max_prompt_length"]:
        return min(s["max_prompt_length"], room) if context else s["max_prompt_length"]
    if prompt_tokens:
        return min(prompt_tokens, room) if engine else prompt_tokens
    how = "max_prompt_length" if "max_prompt_length" in s.keys else "--prompt_tokens"
    unknown.append(f"{how}: not given, so prompts of the whole context ({room} tokens) are counted")
    return room


def _check_rollout(s: Settings, key: str, responses: int, rows: int, gpus: int) -> None:
    """InputError unless a rollout of so many `responses`, which `key` may give, consists of whole steps of so many `rows`
    and of whole groups: the trainers refuse others."""
    if responses % rows:
        raise InputError(f"{key}: {responses} is not a multiple of {rows} rows a step on {gpus} GPUs; change one of them")
    if s["num_mini_batches"] and responses != s["num_mini_batches"] * rows:
        raise InputError(
            f"{key}: {responses} is not num_mini_batches {s['num_mini_batches']} x {rows} rows a step; give one"
        )
    if responses % (group := s["num_generations"] or 1):
        raise InputError(f"num_generations: {group} does not divide a rollout of {responses} responses on {gpus} GPUs")
