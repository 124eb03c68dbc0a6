"""PPO and GRPO: settings of rollouts and of their use that contradict each other, or do nothing."""

import os

from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.preflight.dependent import given

# GRPO: what acts only where the probability of a response is no longer that of sampling it.
OF_RATIO = "epsilon epsilon_high delta off_policy_mask_threshold sapo_ vespo_"


def rollouts(s: Settings) -> Problems:
    """Keys that contradict each other, or without effect beside each other."""
    if s["delta"] and s["delta"] <= 1 + (s["epsilon_high"] or s["epsilon"]):
        yield "delta", f"is {s['delta']}, an upper bound of the ratio that must lie above 1 + epsilon"
    for low, high in (
        ("entropy_coef_min", "entropy_coef_max"),
        ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"),
    ):
        if low in s.keys and s[high] is not None and (s[low] or 0) > s[high]:
            yield low, f"is {s[low]}, above `{high}`, which is {s[high]}"
    if s["loss_type"] == "cispo" and (s["epsilon_high"] or s["epsilon"]) < 1:
        text = "is the greatest ratio of cispo, not the room above 1: every ratio would be cut to it; TRL recommends 5.0"
        yield "epsilon_high", f"{s['epsilon_high'] or s['epsilon']} {text}"
    if s["multi_objective_aggregation"] == "normalize_then_sum" and s.given("scale_rewards"):
        text = "has no effect with `multi_objective_aggregation: normalize_then_sum`, which scales each reward; leave it out"
        yield "scale_rewards", text
    if s["remove_unused_columns"] and s.given("remove_unused_columns") and "reward_functions" in s.keys:
        yield "remove_unused_columns", "takes the columns away that reward functions read; leave it out"
    if warmup := s["value_warmup_rollouts"]:
        steps = warmup * s["num_ppo_epochs"] * (s["num_mini_batches"] or 1)
        if 0 < s["max_steps"] <= steps:
            yield "value_warmup_rollouts", f"are at least {steps} steps, all of max_steps, so the policy would learn nothing"
    if s.values.get("max_completion_length", 0) is None:
        yield "max_completion_length", "is null, so a response might never end; give the most tokens that it may have"
    if s["auto_find_batch_size"] and {"num_iterations", "desirable_weight"} & s.keys.keys():  # GRPO, KTO
        yield "auto_find_batch_size", "smaller batches compare other answers; set per_device_train_batch_size"
    if s["generation_batch_size"] and s["steps_per_generation"]:
        yield "generation_batch_size", "and `steps_per_generation` both say how large a rollout is; give one of the two"
    for key in ("use_vllm", "torch_compile"):
        if s[key] and (s["load_in_4bit"] or s["load_in_8bit"]) and "num_ppo_epochs" in s.keys:
            yield key, "does not work with quantised weights in PPO; drop load_in_4bit or load_in_8bit"
    if not all(s["stop_strings"] or ()):
        yield "stop_strings", "an empty string ends every response at once; leave it out"


def _ratio_is_one(s: Settings) -> bool:
    """GRPO: whether whole rollouts make up each optimizer step, as by default: the policy is then the one that sampled."""
    if "num_iterations" not in s.keys or s["use_vllm"]:
        return False
    of_step = s["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", 1))
    of_rollout = s["steps_per_generation"] or (s["generation_batch_size"] or 0) // of_step
    accumulated = s["gradient_accumulation_steps"]
    return accumulated % ((of_rollout or accumulated) * s["num_iterations"]) == 0


def idle_in_rollouts(s: Settings) -> Problems:
    """Keys without effect that are only warned about."""
    held_out = s["eval_datasets"] or s["test_split_size"]
    sharded = s["deepspeed"] or "ACCELERATE_USE_DEEPSPEED" in os.environ
    in_float32 = s["dtype"] == "float32" and s["bf16"] is False and not s["fp16"]
    trackers = set(s["report_to"] if isinstance(s["report_to"], list) else [s["report_to"]])
    of_ppo = (
        ("num_completions_to_print", not held_out, " without held-out prompts, whose responses it prints"),
        ("num_completions_to_print", not s["log_completions"], " with `log_completions: false`"),
        (
            "missing_eos_penalty",
            s["mask_truncated_completions"],
            " with `mask_truncated_completions`, for the same responses",
        ),
        ("kl_target", s["kl_coef"] == 0, " with `kl_coef: 0`, which it would multiply"),
        ("cliprange_value value_learning_rate", s["vf_coef"] == 0, " with `vf_coef: 0`, which trains no values"),
        ("use_cache", True, ": sampling has its cache, and training needs none"),
        ("offload_frozen_models", s["use_cpu"], " on a CPU"),
        ("data_seed", s["shuffle_dataset"] is False, " with `shuffle_dataset: false`"),
    )
    of_grpo = (
        (OF_RATIO, _ratio_is_one(s), ": each rollout is used in one step, so all ratios of probabilities are 1"),
        ("max_tool_calling_iterations", True, ": no tools are offered here"),
        ("log_multimodal", True, ": prompts are text here"),
        (
            "log_unique_prompts",
            not trackers & {"all", "wandb", "trackio"},
            " without `report_to: trackio` or wandb, whose tables it shortens",
        ),
        ("ds3_gather_for_generation", not sharded, " without DeepSpeed ZeRO-3"),
        ("cast_lm_head_to_fp32", in_float32, ": all is float32 already"),
        ("data_seed", s["shuffle_dataset"] is False, " with `shuffle_dataset: false`"),
    )
    for names, off, text in of_ppo if "num_ppo_epochs" in s.keys else of_grpo if "num_iterations" in s.keys else ():
        for key in given(s, names) if off else ():
            if s[key] != s.keys[key].default:
                yield key, f"has no effect{text}"
