"""Keys that have an effect only with another key: without it they would be accepted but do nothing.

Every check yields (key, what is wrong and what to do).
"""

import re

from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.keys.values import shown
from llmrecipes.preflight.best_model import WATCHING

CLIPPED = "grpo dapo dr_grpo bnpo luspo"  # GRPO's losses that clip the ratio on both sides
# Keys (`x_` stands for all that begin with it), the key they need, and the values of that key that use them (none: any that
# is on).
NEEDS = (
    ("kl_horizon", "kl_target", ""),
    ("missing_eos_mode", "missing_eos_penalty", ""),
    ("gold_tie_width", "rule", ""),
    ("reward_model_dtype", "reward_model_name_or_path", ""),
    ("vllm_", "use_vllm", ""),
    ("muon_learning_rate", "optimizer", "muon"),
    ("optim optim_args optim_target_modules", "optimizer", "adamw"),
    ("discopop_tau", "loss_type", "discopop"),
    ("f_alpha_divergence_coef", "f_divergence_type", "alpha_divergence"),
    ("sapo_", "loss_type", "sapo"),
    ("vespo_", "loss_type", "vespo"),
    ("epsilon", "loss_type", CLIPPED),
    ("epsilon_high", "loss_type", f"{CLIPPED} cispo"),
    ("delta", "loss_type", CLIPPED),
    ("entropy_coef_ entropy_target", "use_adaptive_entropy", ""),
    ("use_bias_correction_kl sync_ref_model", "beta", ""),
    ("liger_kernel_config", "use_liger_kernel", ""),
    ("ref_model_mixup_alpha ref_model_sync_steps", "sync_ref_model", ""),
    ("precompute_ref_batch_size", "precompute_ref_log_probs", ""),
    ("num_completions_to_print log_unique_prompts log_completions_hub_repo", "log_completions", ""),
    ("transformers_continuous_batching_config", "use_transformers_continuous_batching", ""),
    ("use_bnb_nested_quant bnb_4bit_", "load_in_4bit", ""),
    ("optim_target_modules", "optim", "galore lomo apollo"),
    ("trackio_space_id trackio_bucket_id trackio_static_space_id", "report_to", "trackio all"),
    ("hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision", "push_to_hub", ""),
    ("contamination_ngram contamination_common", "decontaminate", ""),
)
WITHOUT_BETAS = ("sgd", "adafactor", "adagrad", "rmsprop")  # optimizers that use none of Adam's keys
# What transformers reads of `optim_args` for the optimizers that do not read all of it.
OPTIM_ARGS = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
} | dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "lomo", "adalomo", "adamw_8bit", "paged_adamw_8bit"), ())
SMOOTHED = {"exo_pair", "robust", "aot", "aot_unpaired"}  # DPO losses that use label_smoothing


def dependent(s: Settings) -> Problems:
    """Keys that have no effect without another one, or with these losses and optimizers."""
    for names, needed, readers in NEEDS:
        if needed not in s.keys or not readers and needed in s.values:  # `use_vllm: false` is how to turn it off
            continue
        for key in given(s, names):
            if not _reads(s[needed], readers.split()):
                which = " or ".join(f"`{needed}: {value}`" for value in readers.split()) or _switch(s, needed)
                yield key, f"has no effect without {which}"
    losses = s["loss_type"]
    if s["label_smoothing"] and isinstance(losses, list) and not SMOOTHED & set(losses):
        yield "label_smoothing", f"has no effect with {', '.join(losses)}, only with {', '.join(sorted(SMOOTHED))}"
    if str(s["optim"]).startswith(WITHOUT_BETAS):
        for key in given(s, "adam_beta1 adam_beta2 adam_epsilon"):
            yield key, f"has no effect with `optim: {s['optim']}`; leave it out"
    if "num_samples" in s.keys and s["temperature"] == 0:
        for key in given(s, "top_k top_p"):
            yield key, "has no effect with `temperature: 0`, which takes the most likely token; leave it out"
    if s["sample_temperature"] == 0 and s.given("num_samples") and s["num_samples"] > 1:
        yield "num_samples", "has no effect with `sample_temperature: 0`, which samples no answers; leave it out"
    yield from _vllm(s)
    if s["value_model"] == "shared" and s["value_model_name_or_path"]:
        yield "value_model_name_or_path", "has no effect with `value_model: shared`, a fresh head on the policy"
    yield from _of_trainer(s)
    yield from _weights(s)
    yield from _annotator(s)
    yield from _judge(s)


def _weights(s: Settings) -> Problems:
    """Weights of sources that are mixed with no other."""
    for key in ("datasets", "eval_datasets", "watch_questions"):
        sources = s[key] if isinstance(s[key], list) else [s[key]]
        is_apart = key == "eval_datasets" and "health_check" in s.keys  # each is measured by itself
        if len(sources) > 1 and not is_apart or s["phases"]:
            continue
        for source in sources:
            if isinstance(source, dict) and source.get("weight") is not None:
                why = "for a set that is measured by itself" if len(sources) > 1 else "with a single source"
                yield key, f"`weight` has no effect {why}; leave it out (`max_rows` takes a part of the rows)"


def _of_trainer(s: Settings) -> Problems:
    """Keys of Trainer that its subclasses here do not follow, or that harm what is saved."""
    if not s.trains:
        return
    for key in ("bf16_full_eval", "fp16_full_eval"):
        if s[key] and "num_ppo_epochs" not in s.keys:  # PPO says so itself
            yield key, "would round the weights that are saved after the last evaluation; set `bf16: auto` instead"
    for key, default in (
        ("eval_accumulation_steps", None),
        ("prediction_loss_only", False),
        ("eval_do_concat_batches", True),
        ("eval_use_gather_object", False),
    ):
        if s.given(key) and s[key] != default:
            yield key, "has no effect: evaluations here keep no predictions; leave it out"
    if s.given("label_names") and s["label_names"] != ["labels"]:
        yield "label_names", "has no effect: the trainers here know the names of their own columns; leave it out"
    if s["enable_jit_checkpoint"]:
        yield "enable_jit_checkpoint", "has no effect: SIGTERM makes a run save a checkpoint and end by itself; leave it out"
    if s.values.get("torch_compile") is False:  # each would turn it on
        for key in given(s, "torch_compile_backend torch_compile_mode"):
            yield key, "has no effect with `torch_compile: false`; leave one of the two out"
    yield from _accelerator(s)
    if s["ignore_data_skip"]:
        text = "would read rows again; a run that continues starts at its next row at no cost; leave it out"
        yield "ignore_data_skip", text
    if s["restore_callback_states_from_checkpoint"]:
        yield (
            "restore_callback_states_from_checkpoint",
            "has no effect: the callbacks here keep no state there; leave it out",
        )
    if s.given("length_column_name"):  # Trainer would order the rows by their tokens without a word
        yield "length_column_name", "has no effect: the rows, once tokenised, have no such column; leave it out"
    yield from _optim_args(s)
    decides = s["load_best_model_at_end"] or s["save_strategy"] == "best" or s["lr_scheduler_type"] in WATCHING
    if s.given("greater_is_better") and not decides:
        yield "greater_is_better", "decides nothing; set `load_best_model_at_end: true` or `save_strategy: best`"
    reads_labels = bool({"packing", "phases"} & s.keys.keys())  # SFT and pretraining, whose rows are `input_ids` with labels
    losses = "" if s["loss_type"] in (None, "nll") or not reads_labels else f" with `loss_type: {s['loss_type']}`"
    if s["label_smoothing_factor"] and "num_ppo_epochs" not in s.keys and (losses or not reads_labels):
        other = "; use `label_smoothing`" if "label_smoothing" in s.keys else "; leave it out"
        yield "label_smoothing_factor", f"has no effect on this stage's loss{losses}{other}"
    if "desirable_weight" in s.keys and s.given("data_seed"):  # KTO
        yield "data_seed", "has no effect: rows are taken in the order that `seed` gave them; leave it out"
    strategy, says_so = s["train_sampling_strategy"], {"desirable_weight", "num_ppo_epochs"} & s.keys.keys()  # KTO, PPO
    if "num_iterations" in s.keys and s.given("train_sampling_strategy") and strategy != "random":  # GRPO
        yield "train_sampling_strategy", "has no effect: prompts are ordered by rollouts; use `shuffle_dataset`"
    elif strategy in ("group_by_length", "batch_rebalance") and not reads_labels and not says_so:
        yield "train_sampling_strategy", f"{strategy} knows no length of a pair of answers; leave it out"


def _optim_args(s: Settings) -> Problems:
    optim = s["optim"] or "adamw_torch_fused"
    for pair in str(s["optim_args"]).replace(" ", "").split(",") if s["optim_args"] else ():
        name, _, value = pair.partition("=")
        if not re.fullmatch(r"\w+=.+", pair):
            yield "optim_args", f"{shown(pair)} has no value; write key=value,key=value"
        elif optim not in OPTIM_ARGS:
            continue
        elif name not in OPTIM_ARGS[optim]:
            known = f"it reads {', '.join(OPTIM_ARGS[optim])}" if OPTIM_ARGS[optim] else "which reads none"
            yield "optim_args", f"`{name}` has no effect with `optim: {optim}`, {known}"
        elif name in ("nesterov", "centered"):
            if value.lower() not in ("true", "false"):
                yield "optim_args", f"`{name}` is {shown(value)}; it must be true or false"
        elif not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e-?\d+)?", value.lower()):
            yield "optim_args", f"`{name}` is {shown(value)}; it must be a number of 0 or more"


# Entries of `accelerator_config` that are refused, the value, and why.
OF_ACCELERATOR = (
    ("split_batches", True, "makes per_device_train_batch_size that of all processes; leave it out, and divide that"),
    # accelerate cuts a batch by the first dimension of its tensors. In a batch of pairs, chosen answers stand above rejected
    # ones, so one cut goes through the pairs, and the last batch of an evaluation counts as one of twice as many rows.
    # PPO's and GRPO's batches are lists, which it cannot cut, and batches of other lengths cannot be joined.
    (
        "dispatch_batches",
        True,
        "cuts batches that cannot be cut: pairs fall apart, the last of an evaluation count twice, and rows of another "
        "length stop the run; leave it out",
    ),
    ("even_batches", False, "leaves processes without a batch for which the others wait for ever; leave it out"),
    (
        "use_seedable_sampler",
        False,
        "draws the order of rows from whatever was drawn before, so that a run that continues takes others; leave it out",
    ),
    ("use_configured_state", True, "needs a state that a program has made before; leave it out"),
)


def _accelerator(s: Settings) -> Problems:
    """Entries of `accelerator_config` with which a step, or an evaluation, would not take the rows that it should."""
    config = s["accelerator_config"] if isinstance(s["accelerator_config"], dict) else {}
    for name, value, why in OF_ACCELERATOR:
        if config.get(name) is value:
            yield "accelerator_config", f"`{name}: {str(value).lower()}` {why}"
    accumulation = config.get("gradient_accumulation_kwargs")
    for name in accumulation if isinstance(accumulation, dict) else ():
        if name == "num_steps":
            yield "accelerator_config", "`num_steps` is `gradient_accumulation_steps` here; give that"
        elif name != "sync_each_batch":
            yield "accelerator_config", f"`{name}` has no effect: Trainer adds gradients up by itself; leave it out"


def given(s: Settings, names: str) -> list[str]:
    """The keys that the user gave among `names`, separated by spaces; `x_` stands for all that begin with it."""
    return [
        key
        for key in s.values
        if s.given(key) and any(key == n or n.endswith("_") and key.startswith(n) for n in names.split())
    ]


def _switch(s: Settings, key: str) -> str:
    return f"`{key}: true`" if isinstance(s.keys[key].default, bool) else f"`{key}`"


def _reads(value, readers: list[str]) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(str(v).startswith(tuple(readers)) for v in values) if readers else bool(value)


SERVERS = ("vllm_server_", "vllm_group_port")
ENGINES = ("vllm_gpu_", "vllm_max_model_length", "vllm_tensor_", "vllm_enable_", "vllm_model_impl")


def _vllm(s: Settings) -> Problems:
    if s["use_vllm"]:
        for key in s.values:
            if key.startswith(ENGINES if s["vllm_mode"] == "server" else SERVERS) and s.given(key):
                yield key, f"has no effect with `vllm_mode: {s['vllm_mode']}`"


JUDGE = ["judge_url", "judge_model", "judge_key_variable", "judge_concurrency", "judge_price"]
# Ranking: keys that only some annotators use. Keys of simulated raters may stay when another annotator is chosen, as when
# configs/quickstart/rank.yaml is run with `--annotator page`.
READ_BY = {
    ("file",): ["rankings_file"],
    ("simulated", "page", "llm"): ["overlap"],
    ("page", "llm"): ["database", "round", "overlap_annotators", "repeat_share", "min_agreement", "order", "guidelines"],
    ("page",): ["serve", "host", "port", "allowed_hosts", "trusted_proxies", "users_file"],
    ("llm",): JUDGE,
}


def _annotator(s: Settings) -> Problems:
    if "annotator" not in s.keys:
        return
    for annotators, keys in READ_BY.items():
        for key in keys:
            if s.given(key) and s["annotator"] not in annotators:
                yield key, f"has no effect with `annotator: {s['annotator']}`, only with {' or '.join(annotators)}"
    if s["annotator"] == "simulated" and s["overlap"] and s.given("overlap") and len(s["rater_noise"]) == 1:
        yield (
            "overlap",
            "has no effect with one rater; give `rater_noise` and `rater_tie_width` an entry for each of several",
        )
    if s["reward_model_name_or_path"] and s["order"] != "uncertain":
        yield "reward_model_name_or_path", "has no effect without `order: uncertain`"


def _judge(s: Settings) -> Problems:
    """Keys of a judge model that is not used, in evaluation and in watching during training."""
    if "judge" in s.keys and s["judge"] != "llm":
        for key in (*JUDGE, "judge_pairs", "judge_guidelines"):
            if s.given(key):
                yield key, "has no effect without `judge: llm`"
    elif s["judge_pairs"] is False and s.given("judge_guidelines"):
        yield "judge_guidelines", "has no effect with `judge_pairs: false`; leave it out"
    elif "judge" in s.keys and (why := _no_pairs(s["models"], s["baseline"])):
        for key in ("judge_pairs", "judge_guidelines"):
            if s[key] and s.given(key):
                yield key, f"has no effect: {why}"
    if "watch_steps" in s.keys and not s["judge_url"]:
        for key in (*JUDGE[1:], "judge_guidelines"):
            if s.given(key):
                yield key, "has no effect without `judge_url`"


def _no_pairs(models, baseline: str) -> str:
    """Why no answers of two models would be compared, and what to do; "" if some would be."""
    if not isinstance(models, dict) or not models:  # said elsewhere
        return ""
    if baseline not in models:
        return f"the baseline {shown(baseline)} is not among `models`; give `baseline`, or leave this out"
    return "" if len(models) > 1 else "there is no other model than the baseline; name a second one under `models`"
