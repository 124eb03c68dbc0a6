"""Settings that contradict each other, or would be accepted and do nothing: checks of a config that need no machine.

Every check yields (key, what is wrong and what to do).
"""

import os
import re

from llmrecipes.keys.schedules import schedule_arguments
from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.keys.values import shown
from llmrecipes.preflight import machine
from llmrecipes.preflight.best_model import best_model
from llmrecipes.preflight.dependent import dependent
from llmrecipes.preflight.generation import generation
from llmrecipes.preflight.rollouts import rollouts

SMALLEST_VOCABULARY = 259  # byte-level BPE, see tokenizers.train_tokenizer
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def _evaluation(s: Settings) -> Problems:
    held_out = s.given("eval_datasets") and s["eval_datasets"] or s["test_split_size"]
    if s["eval_datasets"] and s["test_split_size"]:
        yield "test_split_size", "takes rows for the evaluation that `eval_datasets` names already; give one of the two"
    if (size := s["test_split_size"]) and size > 1 and size != int(size):
        yield "test_split_size", f"{size} is neither a share below 1 nor a whole number of rows"
    if not s.trains or "eval_datasets" not in s.keys or held_out:
        return
    for key, off in (("eval_strategy", "no"), ("eval_on_start", False), ("do_eval", False)):
        if s[key] not in (off, None) and s.given(key):
            yield key, f"{shown(s[key])} has nothing to evaluate on; give `eval_datasets` or `test_split_size`"
    for key in s.values:
        if key.startswith("health_") and s.given(key) and s[key] is not False:
            yield key, "has nothing to evaluate on; give `eval_datasets` or `test_split_size`"
    if s.given("num_generations_eval"):
        yield "num_generations_eval", "has nothing to evaluate on; give `eval_datasets` or `test_split_size`"
    if s["load_best_model_at_end"]:
        yield "load_best_model_at_end", "has nothing to compare models on; give `eval_datasets` or `test_split_size`"


def _length(s: Settings) -> Problems:
    if s.given("max_steps") and s["max_steps"] > 0 and s.given("num_train_epochs"):
        yield "num_train_epochs", f"has no effect beside `max_steps: {s['max_steps']}`; give one of the two"
    if s["total_episodes"] and s["max_steps"] > 0:
        yield "total_episodes", f"and `max_steps: {s['max_steps']}` both say how long to train; give one of the two"
    if s.given("resume_from_checkpoint"):
        yield from _resume(s)
    for what in ("save", "logging", "eval", "warmup"):
        key = f"{what}_steps"
        value = s[key] if what == "warmup" or s[f"{what}_strategy"] == "steps" else None
        if isinstance(value, float) and value > 1 and not value.is_integer():
            yield key, f"{value} is not a whole number of steps; below 1 it is a share of all steps"
    off = {"prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None, "in_order": True}
    for name in off if not s["dataloader_num_workers"] else ():
        key = f"dataloader_{name}"
        if s.given(key) and s[key] != off[name]:
            yield key, "there are no workers; set `dataloader_num_workers`"


def _resume(s: Settings) -> Problems:
    value = s["resume_from_checkpoint"]
    if str(value).lower() in ("true", "auto", "last"):
        return  # the default behaviour
    text = (
        f"{shown(value)} is not taken: a run goes on from the last complete checkpoint in its own `output_dir` by itself; "
        "leave the key out (`--force` starts over; `model_name_or_path` starts from another run's weights)"
    )
    yield "resume_from_checkpoint", text


def _schedule(s: Settings) -> Problems:
    name, given = s["lr_scheduler_type"], s["lr_scheduler_kwargs"] or {}
    if isinstance(given, str):
        yield "lr_scheduler_kwargs", f"{shown(given)} is text; write a mapping, e.g. {{min_lr_rate: 0.1}}"
    if name in ("reduce_lr_on_plateau", "greedy") and s["eval_strategy"] == "no":
        yield "lr_scheduler_type", f"{name} looks at evaluations; set `eval_strategy`"
    if name in ("constant", "reduce_lr_on_plateau", "greedy") and s["warmup_steps"]:
        advice = "use constant_with_warmup" if name == "constant" else "leave it out"
        yield "warmup_steps", f"has no effect with lr_scheduler_type {name}; {advice}"
    if not s.trains or isinstance(given, str) or (arguments := schedule_arguments(name)) is None:
        return
    for key in given:
        if key not in arguments:
            known = f"it takes {', '.join(arguments)}" if arguments else "it takes none"
            yield "lr_scheduler_kwargs", f"`{key}` is unknown to lr_scheduler_type {name}; {known}"
    yield from _schedule_values(s, given)
    missing = [key for key, required in arguments.items() if required and key not in given]
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not {"min_lr", "min_lr_rate"} & set(given):
        missing = ["min_lr_rate"]
    if missing:
        yield "lr_scheduler_type", f"{name} needs `lr_scheduler_kwargs: {{{missing[0]}: ...}}`"


def _schedule_values(s: Settings, given: dict) -> Problems:
    for key, value in given.items():
        if key.endswith("type"):
            continue
        if type(value) not in (int, float) or value < 0:
            yield "lr_scheduler_kwargs", f"`{key}` is {shown(value, key)}; it must be a number of 0 or more"
        elif key == "num_decay_steps" and 0 < s["max_steps"] < value + (s["warmup_steps"] or 0):
            yield "lr_scheduler_kwargs", f"`{key}` and warmup_steps are more than the {s['max_steps']} of max_steps"
        elif key in ("lr_end", "min_lr") and value >= s["learning_rate"]:
            yield "lr_scheduler_kwargs", f"`{key}` is {value}; it must be below learning_rate {s['learning_rate']}"


def _precision(s: Settings) -> Problems:
    if s["fp16"] and s["bf16"] and s.given("bf16"):
        yield "fp16", "and `bf16` are both on; choose one (bf16 where the GPU has it)"
    if s["load_in_4bit"] and s["load_in_8bit"]:
        yield "load_in_8bit", "and `load_in_4bit` are both on; choose one"
    if s.trains and (s["load_in_4bit"] or s["load_in_8bit"]) and not s["use_peft"]:
        key = "load_in_4bit" if s["load_in_4bit"] else "load_in_8bit"
        what = "leave it out" if "model_config" in s.keys else "add `use_peft: true` (QLoRA)"
        yield key, f"quantised weights cannot be trained; {what}"
    fp8 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8"
    if fp8 and not machine.installed("transformer_engine", "torchao", "msamp"):
        yield "bf16", "accelerate's mixed_precision is fp8, which needs transformer-engine or torchao; use bf16 there"
    yield from _checkpointing(s)


def _checkpointing(s: Settings) -> Problems:
    is_switched = s.given("activation_checkpointing") or s.given("gradient_checkpointing")
    with_reference = {"f_divergence_type", "desirable_weight", "num_iterations"} & s.keys.keys()  # DPO, KTO, GRPO
    for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        value = s[key]
        if isinstance(value, str):
            yield key, f"{shown(value)} is text; write a mapping, e.g. {{use_reentrant: false}}"
        for name in ("every_n_layers", "offload") if with_reference and isinstance(value, dict) else ():
            if value.get(name) not in (None, False, 1):  # torch would stop at it in the first step
                yield key, f"`{name}` is lost here, where TRL turns checkpointing off and on for other passes; leave it out"
        if value and not (is_switched or s["gradient_checkpointing"]):  # on by default in most of TRL's configs
            yield key, "has no effect without `activation_checkpointing: true`"
    old, new = s["gradient_checkpointing"], s["activation_checkpointing"]
    if s.given("gradient_checkpointing") and s.given("activation_checkpointing") and old != new:
        yield "gradient_checkpointing", "is the older name of `activation_checkpointing`, and the two differ; give one"


def _packing(s: Settings) -> Problems:
    if s["padding_free"] and "packing" not in s.keys:
        yield "padding_free", "has no effect: this stage's trainer in TRL has turned it off; leave it out"
    if s["eval_packing"] and not (s["packing"] or s["padding_free"]):
        yield "eval_packing", "rows in a block would see each other; set `packing: true` too, or leave it out"
    if (s["packing"] or s["eval_packing"]) and "max_length" in s.keys and s["max_length"] is None:
        yield "packing", "packs blocks of `max_length` tokens, which is null; give a number"
    if s["packing"] and s["truncation_mode"] == "keep_end":
        yield "truncation_mode", "has no effect with `packing: true`, which keeps the beginning of rows; leave it out"
    if s["assistant_only_loss"] and s["completion_only_loss"]:
        yield "completion_only_loss", "and `assistant_only_loss` are both on; the first is for prompt/completion rows"
    if s["assistant_only_loss"] and s["completion_only_loss"] is False:
        yield (
            "completion_only_loss",
            "false puts the loss on all tokens, `assistant_only_loss` on answers; give one of the two",
        )


def _fused_lm_head(s: Settings) -> Problems:
    for key in ("use_liger_kernel", "label_smoothing_factor"):
        if s["fused_lm_head"] and s[key]:
            yield "fused_lm_head", f"takes the place of the loss that `{key}` changes; give one of the two"


def _liger(s: Settings) -> Problems:
    """Entries of `liger_kernel_config` with which TRL or liger-kernel would stop."""
    entries = s["liger_kernel_config"] if s["use_liger_kernel"] and isinstance(s["liger_kernel_config"], dict) else {}
    of_trl = {"packing", "f_divergence_type", "desirable_weight", "num_iterations"} & s.keys.keys()  # SFT, DPO, KTO, GRPO
    if of_trl and entries.get("fused_linear_cross_entropy"):
        yield "liger_kernel_config", "`fused_linear_cross_entropy` would replace the head that this stage's own loss reads"
    elif not of_trl and entries.get("cross_entropy") and entries.get("fused_linear_cross_entropy", True):
        yield "liger_kernel_config", "`cross_entropy: true` needs `fused_linear_cross_entropy: false`, which does the same"


def _adapter(s: Settings) -> Problems:
    if "use_peft" not in s.keys:
        return
    for key in s.values:
        if key.startswith("lora_") or key in ("use_rslora", "use_dora"):
            if not s["use_peft"] and s.given(key) and s[key] is not False:
                why = "without `use_peft: true`, which trains an adapter" if s.trains else "here; nothing is trained"
                yield key, f"has no effect {why}"
    if not s.trains and s["use_peft"]:
        yield "use_peft", "has no effect here; nothing is trained, and an adapter's folder is read as it is"
    elif s["use_peft"] and "model_config" in s.keys:
        yield "use_peft", "has no effect here; pretraining trains all weights, recipes/sft.py trains adapters"
    if s.given("lora_task_type") and s["lora_task_type"] != ("SEQ_CLS" if "health_check" in s.keys else "CAUSAL_LM"):
        yield "lora_task_type", f"{s['lora_task_type']} is not this stage's; leave it out"
    targets = s["lora_target_modules"]
    if isinstance(targets, list) and "all-linear" in targets and len(targets) > 1:
        yield "lora_target_modules", "all-linear is all of them; name it alone"


def _texts(s: Settings) -> Problems:
    """Text given for a mapping, and texts that must have a certain form."""
    mappings = "model_init_kwargs dataset_kwargs liger_kernel_config accelerator_config generation_kwargs"
    for key in (*mappings.split(), "transformers_continuous_batching_config"):
        if isinstance(s[key], str):
            yield key, f"{shown(s[key])} is text; write a mapping"
    if s["fsdp_config"] and not s["fsdp"]:
        yield "fsdp_config", "has no effect without `fsdp: true`"
    hub_id = s["hub_model_id"]
    if hub_id and not machine.is_hub_id(hub_id):
        yield "hub_model_id", f"{shown(hub_id)} is not a repository name; write NAME or OWNER/NAME (letters, digits, - _ .)"
    if s["hub_token"]:
        yield "hub_token", "a token in a config ends up in logs and checkpoints; set HF_TOKEN, or log in by `hf auth login`"
    for key in ("rule", "judge", "watch_rule", "reward_functions"):
        for value in s[key] if isinstance(s[key], list) else [s[key]]:
            if value and not (key == "judge" and value == "llm") and value.count(":") != 1:
                yield key, f"{shown(value)} names no function; write package.module:function"
    if s["judge_url"] and not re.match(r"https?://[^/]", s["judge_url"]):
        yield "judge_url", f"{shown(s['judge_url'].rpartition('@')[2])} is not an address; write http://HOST:PORT/v1"
    for host in s["allowed_hosts"] or ():
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host):
            yield "allowed_hosts", f"{shown(host)} is not a host name; write each as rank.example.org, no scheme, port or *"
    attention = s["attn_implementation"]
    if attention and attention not in ATTENTION and "/" not in attention:
        yield (
            "attn_implementation",
            f"{shown(attention)} is unknown; choose from {', '.join(ATTENTION)}, or name a Hub kernel",
        )
    weights, functions = s["reward_weights"], s["reward_functions"]
    if weights is not None and functions is not None:
        count = len(functions) + bool(s["reward_model_name_or_path"])
        if len(weights) != count:
            yield "reward_weights", f"{len(weights)} weights for {count} rewards (the reward model first); give one each"


def _preferences(s: Settings) -> Problems:
    for key in ("loss_weights", "reward_weights"):
        if s[key] and not any(s[key]):
            yield key, "are all 0, so nothing would be learned; leave them out for 1 each"
    losses, weights = s["loss_type"], s["loss_weights"]
    if "loss_weights" not in s.keys or not isinstance(losses, list):
        return
    if not losses:
        yield "loss_type", "is empty; name at least one loss, e.g. sigmoid"
    if weights is not None and len(weights) != len(losses):
        yield "loss_weights", f"{len(weights)} weights for {len(losses)} losses ({', '.join(losses)}); give one each"
    if "exo_pair" in losses and not s["label_smoothing"]:
        yield "loss_type", "exo_pair needs `label_smoothing` above 0; its paper recommends 1e-3"
    if "robust" in losses and not s["label_smoothing"]:
        yield "loss_type", "robust is sigmoid without `label_smoothing` above 0, the share of wrongly labelled pairs"
    if s["use_weighting"] and {"aot", "aot_unpaired"} & set(losses):
        yield "use_weighting", "is not defined for aot losses, which sort the pairs"
    if s["use_weighting"] and "sft" in losses:  # TRL would stop at the first step
        yield "use_weighting", "is not defined for sft, whose loss is no pair's; leave one of the two out"
    without = {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
    if s["f_divergence_type"] not in (None, "reverse_kl") and set(losses) & without:
        yield "f_divergence_type", f"{s['f_divergence_type']} is not defined for {', '.join(losses)}; leave it out"
    elif s["f_divergence_type"] not in (None, "reverse_kl") and set(losses) == {"sft"}:
        yield "f_divergence_type", "has no effect with sft alone, which compares with no reference; leave it out"
    if s["sync_ref_model"] and s["use_peft"]:
        yield "sync_ref_model", "with LoRA there is no second model to synchronise; leave one of the two out"
    if s["sync_ref_model"] and s["precompute_ref_log_probs"]:
        yield "sync_ref_model", "makes what precompute_ref_log_probs computed stale; leave one of the two out"


def _kto(s: Settings) -> Problems:
    if "desirable_weight" not in s.keys or s["loss_type"] != "kto":
        return
    if not s["desirable_weight"] and not s["undesirable_weight"]:
        yield "desirable_weight", "and `undesirable_weight` are both 0, so nothing would be learned"
    if s["per_device_train_batch_size"] == 1:
        yield "per_device_train_batch_size", "KTO compares the answers of a batch with one another; give at least 2"
    if s.given("train_sampling_strategy") and s["train_sampling_strategy"] != "sequential":
        yield "train_sampling_strategy", "KTO pairs neighbours, whose order is mixed before; leave it out"


def _fresh_model(s: Settings) -> Problems:
    config = s["model_config"]
    if not isinstance(config, dict):
        return
    if s["model_name_or_path"]:
        yield "model_config", "makes a fresh model, `model_name_or_path` continues one; give one of the two"
    for key in ("model_revision", "dtype", "load_in_4bit", "load_in_8bit"):
        if s.given(key) and s[key] not in (None, False, "auto", "float32", "main"):
            yield (
                key,
                "has no effect on a fresh model: its weights are random, in float32 (`bf16: true` computes in 16 bits)",
            )
    sizes = {key: value for key, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    for key, value in sizes.items():
        if key.startswith(("num_", "n_", "hidden_size", "intermediate_size", "vocab_size", "max_position")) and value < 1:
            yield "model_config", f"{key} is {value}; it must be at least 1"
            return
    hidden = sizes.get("hidden_size", sizes.get("n_embd"))
    heads = sizes.get("num_attention_heads", sizes.get("n_head"))
    if hidden and heads and "head_dim" not in config and hidden % heads:
        yield "model_config", f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
    shared = sizes.get("num_key_value_heads")
    if heads and shared and heads % shared:
        yield "model_config", f"num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}"


def _vocabulary(s: Settings) -> Problems:
    if "vocab_size" in s.keys and s["vocab_size"] < SMALLEST_VOCABULARY:
        yield "vocab_size", f"{s['vocab_size']} is below {SMALLEST_VOCABULARY} (256 bytes and the special tokens)"
    if s["sample_bytes"] and s["test_split_size"]:
        yield "test_split_size", "holds nothing out of a sample; give `eval_datasets`, or leave `sample_bytes` out"
    if base := s["base_tokenizer_name_or_path"]:
        for key in filter(s.given, ("digits", "template_tokens", "max_length")):
            yield key, f"has no effect with `base_tokenizer_name_or_path`, which stays as it is at {base}; leave it out"
    if "template_tokens" in s.keys and not all(len(token) > 1 for token in s["template_tokens"]):
        yield "template_tokens", "a single character, or none, would be a special token wherever it stands in a text"


def _models_compared(s: Settings) -> Problems:
    models = s["models"]
    if "baseline" not in s.keys or not isinstance(models, dict):
        return
    for name, path in models.items():
        if not str(name).strip() or "/" in str(name) or str(name) in (".", ".."):
            yield "models", f"{shown(name)} is not a name; give one without a slash, for tables and files"
        if not isinstance(path, str) or not path:
            yield "models", f"{name}: {shown(path)} is neither a folder nor a Hub id"
    if not any(s[key] for key in ("datasets", "eval_datasets", "tasks", "blimp_path")):
        yield "models", "there is nothing to measure them on; give `datasets` (questions), `eval_datasets` (text) or `tasks`"
    if models and s.given("baseline") and s["baseline"] not in models:
        yield "baseline", f"{s['baseline']} is not one of models: {', '.join(models)}"
    if s["model_name_or_path"]:
        yield "model_name_or_path", "is not read here; name what is compared under `models: {name: path}`"


def _not_carried_out(s: Settings) -> Problems:
    """Library keys that would be accepted but do nothing."""
    if s["dataset_text_field"] not in (None, "text"):
        yield "dataset_text_field", "text is read from the column `text`; rename the column, or name a `reader` in datasets"
    if s["model_init_kwargs"]:
        yield "model_init_kwargs", "is not read; use `dtype`, `attn_implementation`, `model_revision`"
    for key in s["dataset_kwargs"] if isinstance(s["dataset_kwargs"], dict) else ():
        yield "dataset_kwargs", f"`{key}` is not read; leave it out"
    if s.given("assistant_only_loss") and s["assistant_only_loss"] is False:
        text = "the loss of `messages` is always on the answers alone; leave it out, or give `prompt` and `completion` with "
        yield "assistant_only_loss", text + "`completion_only_loss: false`, which puts it on both"
    for key, acts in (("do_predict", False), ("do_train", True)):
        if s.given(key) and s[key] != acts:
            yield key, "has no effect: a stage trains, then evaluates on what is held out; leave it out"
    checks_health = "health_check" in s.keys and not s.trains  # the pairs come from `eval_datasets`, or from its training
    for key, does_nothing in (
        ("eval_datasets", "annotator" in s.keys or "output_format" in s.keys),
        ("test_split_size", "annotator" in s.keys or "output_format" in s.keys or "baseline" in s.keys),
        ("datasets", checks_health),
        ("test_split_size", checks_health),
        ("tokenizer_name_or_path", checks_health),  # a reward model is read with the tokenizer in its folder
    ):
        if does_nothing and s[key]:
            yield key, "has no effect here; leave it out"
    if checks_health and s["health_check"] is False:
        yield "health_check", "is all that this recipe does; leave it out"
    if isinstance(s["report_to"], list) and "none" in s["report_to"] and len(s["report_to"]) > 1:
        yield "report_to", "holds none beside trackers; leave one or the other out"
    for key in ("batch_eval_metrics", "include_for_metrics"):
        if s[key]:
            yield key, "has no effect: a stage computes no metrics of the libraries' `compute_metrics`; leave it out"
    if s.given("do_eval") and s["do_eval"] is False and (s["eval_datasets"] or s["test_split_size"]):
        yield "do_eval", "held-out rows are measured at the end; leave `eval_datasets` and `test_split_size` out"


def _order(s: Settings) -> Problems:
    """Pretraining, whose rows come in their own order."""
    if "phases" in s.keys and s.given("train_sampling_strategy"):
        yield "train_sampling_strategy", "has no effect: sources, weights and seed give the order; leave it out"


CONTRADICTIONS = (
    _order,
    _evaluation,
    best_model,
    _length,
    _schedule,
    _precision,
    _packing,
    _fused_lm_head,
    _liger,
    _adapter,
    _texts,
    _preferences,
    rollouts,
    generation,
    _kto,
    _fresh_model,
    _vocabulary,
    _models_compared,
    dependent,
    _not_carried_out,
)
