"""What PPOConfig checks of its values, and the batch sizes that it derives; each function takes the config."""

from dataclasses import fields
from importlib.util import find_spec

from transformers import TrainingArguments

from llmrecipes.config import InputError
from llmrecipes.ppo.compilation import check_compilation

# Arguments of TrainingArguments that PPO does not support: the one allowed value, and why or what to use instead.
REFUSED = {
    "neftune_noise_alpha": (None, "its noise would move the first probability ratio away from 1"),
    "auto_find_batch_size": (False, "a rollout has a fixed size; set per_device_train_batch_size"),
    "label_smoothing_factor": (0.0, "PPO's loss has no labels to smooth"),
    "bf16_full_eval": (False, "evaluations run in the precision of training; set bf16"),
    "fp16_full_eval": (False, "evaluations run in the precision of training; set fp16"),
    "use_liger_kernel": (False, "its fused loss is not PPO's; log-probabilities are computed in chunks anyway"),
    "train_sampling_strategy": ("random", "prompts are ordered by rollouts; shuffle_dataset: false keeps their order"),
}
ABOVE_0 = (
    "max_completion_length",
    "num_ppo_epochs",
    "temperature",
    "cliprange",
    "cliprange_value",
    "kl_horizon",
    "per_device_generation_batch_size",
    "num_generations",
)
ABOVE_0_IF_GIVEN = (
    "num_mini_batches",
    "rollout_batch_size",
    "total_episodes",
    "kl_target",
    "score_clip",
    "logprob_chunk_size",
    "early_stop_kl",
)
AT_LEAST_0 = ("kl_coef", "vf_coef", "value_warmup_rollouts", "num_completions_to_print", "num_rollout_completions")


def check_refused(args) -> None:
    """InputError for arguments that PPO does not support."""
    for name, (allowed, reason) in REFUSED.items():
        if getattr(args, name) != allowed:
            raise InputError(f"{name}: {getattr(args, name)!r} is not for PPO ({reason}); leave it out")


def check_ranges(args) -> None:
    """InputError for values outside of their range or choices."""
    for name in ABOVE_0:
        if getattr(args, name) <= 0:
            raise InputError(f"{name}: {getattr(args, name)} must be greater than 0")
    for name in ABOVE_0_IF_GIVEN:
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise InputError(f"{name}: {getattr(args, name)} must be greater than 0 (or left out)")
    for name in AT_LEAST_0:
        if getattr(args, name) < 0:
            raise InputError(f"{name}: {getattr(args, name)} must not be below 0")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"{name}: {getattr(args, name)} must lie between 0 and 1")
    for key in fields(args):
        choices, value = key.metadata.get("choices"), getattr(args, key.name)
        if choices and key.name not in TrainingArguments.__dataclass_fields__ and value not in (*choices, key.default):
            raise InputError(f"{key.name}: {value!r} is not one of {', '.join(choices)}")
    if args.remove_unused_columns:
        raise InputError("remove_unused_columns: must be false for PPO, reward functions read the extra columns")


def settle_batch_sizes(args) -> None:
    """Fills in num_mini_batches and rollout_batch_size from each other."""
    minibatch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.rollout_batch_size is None:
        args.num_mini_batches = args.num_mini_batches or 1
        args.rollout_batch_size = args.num_mini_batches * minibatch
        return
    unit = minibatch * (args.num_mini_batches or 1)
    if args.rollout_batch_size % unit:
        below = args.rollout_batch_size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise InputError(
            f"rollout_batch_size: {args.rollout_batch_size} is not a multiple of {unit} "
            f"(per_device_train_batch_size {args.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} x {args.world_size} processes x num_mini_batches "
            f"{args.num_mini_batches or 1}); nearest: {nearest}"
        )
    if args.num_mini_batches is not None and args.rollout_batch_size != unit:
        raise InputError(
            f"rollout_batch_size: {args.rollout_batch_size} is not num_mini_batches {args.num_mini_batches} x "
            f"{minibatch} responses in an optimizer step; give one of the two, or {unit}"
        )
    args.num_mini_batches = args.rollout_batch_size // minibatch


def check_combinations(args) -> None:
    """InputError for arguments that contradict each other."""
    if args.rollout_batch_size % args.num_generations:
        raise InputError(
            f"num_generations: {args.num_generations} does not divide a rollout of {args.rollout_batch_size} responses"
        )
    # One rollout changes β by at most the factor 1 ± 0.2 · rollout / horizon (adapt_kl_coef): with a shorter horizon
    # than this, the factor could be negative.
    if args.kl_target is not None and args.kl_horizon < 0.2 * args.rollout_batch_size:
        raise InputError(
            f"kl_horizon: {args.kl_horizon} is less than 0.2 x rollout_batch_size {args.rollout_batch_size}, so kl_coef "
            "could turn negative; use many times a rollout, such as the default of 10000"
        )
    if args.total_episodes is not None and args.max_steps > 0:
        raise InputError("total_episodes: is given with max_steps, and each says how long to train; leave one out")
    if args.early_stop_kl is not None and (args.fp16 or args.deepspeed_plugin):
        raise InputError("early_stop_kl: does not work with fp16 or DeepSpeed, which take no step without a gradient")
    check_compilation(args)


def check_vllm(args) -> None:
    """InputError for what vLLM cannot do; its context limits max_prompt_length."""
    if args.old_logprobs == "sampler":
        raise InputError(
            "old_logprobs: sampler is for the built-in decode loop; vLLM's log-probabilities differ by more than "
            "rounding, which vllm_importance_sampling_correction corrects"
        )
    if args.cache_implementation is not None:
        raise InputError("cache_implementation: is for the built-in decode loop; leave it out with use_vllm")
    if find_spec("vllm") is None:
        raise InputError(
            'use_vllm: vLLM is not installed here (pip install "vllm==0.30.0"; the training process needs it in both '
            "modes); or leave use_vllm out"
        )
    url = args.vllm_server_base_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise InputError(f"vllm_server_base_url: {url!r} must begin with http:// or https://")
    size = args.vllm_tensor_parallel_size
    if size < 1 or (args.vllm_mode == "colocate" and args.world_size % size):
        raise InputError(f"vllm_tensor_parallel_size: {size} does not divide the {args.world_size} processes evenly")
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    if low is not None and high is not None and low >= high:
        raise InputError(
            f"vllm_importance_sampling_clip_min: {low} must be less than vllm_importance_sampling_clip_max {high}"
        )
    if low is None and high is None and args.vllm_importance_sampling_mode.endswith("truncate"):
        raise InputError(
            "vllm_importance_sampling_clip_max: a *_truncate mode needs it or vllm_importance_sampling_clip_min"
        )
    if args.vllm_max_model_length is not None:
        room = args.vllm_max_model_length - args.max_completion_length
        if room < 1:
            raise InputError(
                f"vllm_max_model_length: {args.vllm_max_model_length} leaves no room for a prompt next to "
                f"max_completion_length {args.max_completion_length}"
            )
        args.max_prompt_length = min(room, args.max_prompt_length or room)
