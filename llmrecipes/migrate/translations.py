"""How each old key of alignment-handbook, TRL, LlamaFactory and axolotl is written today; `migrate` applies it.

A translation takes the draft and the old value; it sets our keys, and records what is lost or not needed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrecipes.keys.renamed import GONE, RENAMES
from llmrecipes.keys.values import shown


@dataclass
class Draft:
    """A config being built. `lost`: old key -> why it could not be translated; `needless`: old keys that are our
    defaults."""

    old: dict[str, Any]
    tool: str
    stage: str
    keys: set[str]
    values: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    needless: list[str] = field(default_factory=list)
    template: str | None = None

    def set(self, key: str, value: Any) -> None:
        kept = self.values.setdefault(key, value)
        if kept != value:  # two old keys for one of ours: the first counts, and the reader must know
            self.lost[f"{key}: {shown(value)}"] = f"the config gives it twice; {shown(kept)} is kept"

    def environment(self, name: str, value: Any) -> None:
        self.values.setdefault("env", {})[name] = str(value)


def translate(draft: Draft, key: str, value: Any) -> None:
    """Converts one old key: by its translation, by its new name, or unchanged."""
    if value is None:
        return
    if key in OF_TOOL.get(draft.tool, {}):
        OF_TOOL[draft.tool][key](draft, value)
    elif key in TRANSLATIONS and key not in ("max_prompt_length",) or key == "max_prompt_length" and draft.stage != "ppo":
        TRANSLATIONS[key](draft, value)
    elif key in draft.keys:
        draft.set(key, value)
    elif RENAMES.get(key) in draft.keys:
        draft.set(RENAMES[key], value)
    else:
        draft.lost[key] = GONE.get(key, f"no key of recipes/{draft.stage}.py means the same")


def needless(key: str) -> Callable:
    """A translation that leaves out `key`, which has no effect here."""
    return lambda draft, value: draft.needless.append(key)


def lost(key: str, why: str) -> Callable:
    """A translation that leaves out `key` and says why."""
    return lambda draft, value: draft.lost.__setitem__(key, why)


def to(key: str, change: Callable = lambda value: value) -> Callable:
    """A translation that writes the value, passed through `change`, under `key`."""
    return lambda draft, value: draft.set(key, change(value))


def when_on(key: str, new: str, new_value: Any) -> Callable:
    """An old switch: if on, it becomes `new: new_value`; if off, it is our default."""
    return lambda draft, value: draft.set(new, new_value) if value else draft.needless.append(key)


def _mixture(draft: Draft, value: dict) -> None:
    """alignment-handbook's mixture: its `weight` is the share taken of a source, which becomes a slice of the split."""
    sources = []
    for entry in value.get("datasets") or []:
        names = {"id": "path", "config": "name"}
        source = {names.get(key, key): v for key, v in entry.items() if v is not None and key != "weight"}
        share = entry.get("weight", 1.0)
        if share == 0:
            draft.lost[f"dataset_mixture {source.get('path')}"] = "its weight is 0; left out"
            continue
        if share < 1:
            draft.lost["dataset_mixture weight"] = "below 1 it is now the first part of a split, where it was a random one"
            source["split"] = f"{source.get('split', 'train')}[:{round(share * 100, 6):g}%]"
        elif share > 1:
            draft.lost[f"dataset_mixture {source.get('path')}"] = f"weight {share} repeats rows; here each comes once"
        sources.append(source)
    draft.set("datasets", sources)
    if value.get("test_split_size"):
        draft.set("test_split_size", value["test_split_size"])
    for key in value.keys() - {"datasets", "test_split_size"}:
        draft.lost[f"dataset_mixture.{key}"] = "`seed` shuffles the sources" if key == "seed" else "no key means the same"


def _mixer(draft: Draft, value: dict) -> None:
    splits = draft.old.get("dataset_splits") or ["train", "test"]
    configs = draft.old.get("dataset_configs") or [None] * len(value)
    for is_test in (False, True):
        sources = []
        for (path, share), name in zip(value.items(), configs, strict=False):
            for split in (split for split in splits if ("test" in split) == is_test):
                part = f"{split}[:{round(share * 100, 6):g}%]" if share < 1 and not is_test else split
                sources.append({"path": path, **({"name": name} if name else {}), "split": part})
        if sources and (not is_test or _evaluates(draft)):
            draft.set("eval_datasets" if is_test else "datasets", sources)


def _one_dataset(draft: Draft, value: str) -> None:
    old = draft.old
    source = {"path": value, **({"name": old["dataset_config"]} if old.get("dataset_config") else {})}
    draft.set("datasets", [{**source, "split": old.get("dataset_train_split", "train")}])
    if _evaluates(draft):
        draft.set("eval_datasets", [{**source, "split": old.get("dataset_test_split", "test")}])


def _evaluates(draft: Draft) -> bool:
    strategy = draft.old.get("eval_strategy", draft.old.get("evaluation_strategy", "no"))
    return strategy not in ("no", False) or bool(draft.old.get("do_eval"))


def _named_datasets(key: str) -> Callable:
    """LlamaFactory's `dataset: a,b`: names in dataset_info.json, which is read if it exists."""

    def translation(draft: Draft, value: str | list) -> None:
        names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
        folder = Path(str(draft.old.get("dataset_dir", "data")))
        try:
            known = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        sources = []
        for name in names:
            entry = known.get(name, {})
            path = entry.get("hf_hub_url") or (str(folder / entry["file_name"]) if entry.get("file_name") else name)
            if not entry:
                draft.lost[f"{key} {name}"] = "is a name in dataset_info.json; write its file or Hub id as `path`"
            rows = draft.old.get("max_samples")
            sources.append({"path": path, **({"max_rows": rows} if rows else {})})
        draft.set("eval_datasets" if key == "eval_dataset" else "datasets", sources)

    return translation


def _axolotl_datasets(key: str) -> Callable:
    def translation(draft: Draft, value: list) -> None:
        sources = []
        for entry in value if isinstance(value, list) else [value]:
            entry = entry if isinstance(entry, dict) else {"path": entry}
            kept = {
                k: v for k, v in entry.items() if k in ("path", "name", "split", "data_files", "revision") and v is not None
            }
            if entry.get("type") not in (None, "chat_template", "completion"):
                draft.lost[f"{key}.type"] = "set the prompt's words; here columns say the shape, the chat template the words"
            for k in entry.keys() - kept.keys() - {"type", "ds_type"}:
                draft.lost[f"{key}.{k}"] = "rows of the usual shapes are recognised; else name a `reader`"
            sources.append(kept)
        draft.set("eval_datasets" if key == "test_datasets" else "datasets", sources)

    return translation


def _targets(draft: Draft, value: str | list) -> None:
    names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
    draft.set("lora_target_modules", "all-linear" if names in (["all"], ["all-linear"]) else names)


def _adapter(key: str) -> Callable:
    def translation(draft: Draft, value: str) -> None:
        if value in ("lora", "qlora"):
            draft.set("use_peft", True)
            if value == "qlora":
                draft.set("load_in_4bit", True)
            if draft.tool == "LlamaFactory" and "lora_alpha" not in draft.old and "lora_rank" in draft.old:
                draft.set("lora_alpha", 2 * draft.old["lora_rank"])  # its default
        elif value != "full":
            draft.lost[key] = f"{value} is not here; LoRA or all weights"

    return translation


def _attention(draft: Draft, value: Any) -> None:
    names = {
        "fa2": "flash_attention_2",
        "fa3": "flash_attention_3",
        "sdpa": "sdpa",
        "disabled": "eager",
        True: "flash_attention_2",
    }
    if value in names:
        draft.set("attn_implementation", names[value])
    else:
        draft.needless.append("flash_attn")


def _template(draft: Draft, value: str) -> None:
    if "{" not in value:  # axolotl's and LlamaFactory's name of a template
        draft.lost["chat_template"] = f"`{value[:40]}`: the tokenizer's own template is used"
    elif "chat_template_path" in draft.keys:
        draft.template = value
    else:
        draft.lost["chat_template"] = "the template in the model's folder is used; set it in the SFT stage before this one"


def _per_epoch(key: str, prefix: str) -> Callable:
    def translation(draft: Draft, value: float) -> None:
        epochs = draft.old.get("num_epochs") or 1
        if value and value > 0:
            draft.set(f"{prefix}_strategy", "steps")
            draft.set(f"{prefix}_steps", round(1 / (value * epochs), 6) if value * epochs > 1 else 0.999999)

    return translation


def _special_tokens(draft: Draft, value: dict) -> None:
    for name, token in value.items():
        if name in ("eos_token", "pad_token") and name in draft.keys:
            draft.set(name, token)
        else:
            draft.lost[f"special_tokens.{name}"] = "the tokenizer's own is used"


def _launched(key: str) -> Callable:
    def translation(draft: Draft, value: Any) -> None:
        if key == "deepspeed":
            file = "zero3" if any(part in str(value).lower() for part in ("zero3", "z3", "stage3")) else "zero2"
        else:
            file = "fsdp2"
        draft.lost[key] = f"is the launch's: accelerate launch --config_file configs/accelerate/{file}.yaml ..."

    return translation


def _wandb(name: str) -> Callable:
    def translation(draft: Draft, value: Any) -> None:
        if value:
            draft.environment(name, value)
            draft.set("report_to", "wandb")

    return translation


def _loss(draft: Draft, value: str) -> None:
    if value in ("orpo", "simpo", "kto", "kto_pair", "grpo"):
        draft.lost["loss"] = f"{value} is another method than DPO; written as DPO, which is not the same"
    else:
        draft.set("loss_type", {"dpo": "sigmoid"}.get(value, value))


def _precision(draft: Draft, value: Any) -> None:
    draft.set("bf16", "auto" if value in (True, "auto") else value)  # on if the hardware supports it


def _warmup(draft: Draft, value: float) -> None:
    if not draft.old.get("warmup_steps"):
        draft.set("warmup_steps", value)


def _quantised(draft: Draft, value: int) -> None:
    draft.set("load_in_4bit" if value == 4 else "load_in_8bit", True)


def _rpo(draft: Draft, value: float) -> None:
    loss = draft.old.get("loss_type") or "sigmoid"
    draft.values["loss_type"] = [*([loss] if isinstance(loss, str) else loss), "sft"]
    draft.set("loss_weights", [*[1.0] * (len(draft.values["loss_type"]) - 1), value])


TRANSLATIONS = {
    "bf16": _precision,
    "tf32": lost("tf32", "is set on the GPU that has it; add `tf32: true` there"),
    "warmup_ratio": _warmup,
    "max_steps": lambda draft, value: draft.set("max_steps", value) if value > 0 else draft.needless.append("max_steps"),
    "gradient_checkpointing": to("activation_checkpointing", bool),
    "gradient_checkpointing_kwargs": to("activation_checkpointing_kwargs"),
    "packing_strategy": to("packing_strategy", lambda v: {"ffd": "bfd", "bfd-requeue": "bfd_split"}.get(v, v)),
    "overwrite_output_dir": lost("overwrite_output_dir", "overwrites finished work; give --force when that is meant"),
    "max_prompt_length": lost("max_prompt_length", "`max_length` holds for prompt and answer together"),
    "dataset_kwargs": lost("dataset_kwargs", "the chat template decides; TRL reads none of it any more"),
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_name": _one_dataset,
    "dataset_splits": lambda draft, value: None,
    "dataset_configs": lambda draft, value: None,
    "dataset_config": lambda draft, value: None,
    "dataset_train_split": lambda draft, value: None,
    "dataset_test_split": lambda draft, value: None,
    "chat_template": _template,
    "do_train": needless("do_train"),
    "do_eval": needless("do_eval"),
    "do_predict": lost("do_predict", "nothing is predicted; recipes/sample.py writes answers"),
    "save_safetensors": needless("save_safetensors"),
    "use_flash_attention_2": when_on("use_flash_attention_2", "attn_implementation", "flash_attention_2"),
    "group_by_length": when_on("group_by_length", "train_sampling_strategy", "group_by_length"),
    "adafactor": when_on("adafactor", "optim", "adafactor"),
    "logging_dir": lambda draft, value: draft.environment("TENSORBOARD_LOGGING_DIR", value),
    "resume_from_checkpoint": needless("resume_from_checkpoint"),
    "hub_token": lost("hub_token", "set HF_TOKEN, or log in by `hf auth login`"),
    "push_to_hub_token": lost("push_to_hub_token", "set HF_TOKEN, or log in by `hf auth login`"),
    "deepspeed": _launched("deepspeed"),
    "fsdp": _launched("fsdp"),
    "fsdp_config": _launched("fsdp_config"),
    "rpo_alpha": _rpo,
    "trl": lost("trl", "its keys stand on the top level here"),
}
OF_TOOL = {
    "LlamaFactory": {
        "stage": lambda draft, value: None,
        "dataset": _named_datasets("dataset"),
        "eval_dataset": _named_datasets("eval_dataset"),
        "dataset_dir": lambda draft, value: None,
        "max_samples": lambda draft, value: None,
        "finetuning_type": _adapter("finetuning_type"),
        "lora_target": _targets,
        "additional_target": to("lora_modules_to_save", lambda v: v if isinstance(v, list) else str(v).split(",")),
        "flash_attn": _attention,
        "quantization_bit": _quantised,
        "quantization_method": needless("quantization_method"),
        "pref_loss": _loss,
        "template": lost("template", "the tokenizer's own chat template is used"),
        "overwrite_cache": needless("overwrite_cache"),
        "plot_loss": needless("plot_loss"),
        "val_size": lambda draft, value: draft.set("test_split_size", value) if value else None,
        "neat_packing": to("packing"),
        "max_new_tokens": lambda draft, value: translate(draft, "max_completion_length", value),
        "pure_bf16": when_on("pure_bf16", "dtype", "bfloat16"),
    },
    "axolotl": {
        "datasets": _axolotl_datasets("datasets"),
        "test_datasets": _axolotl_datasets("test_datasets"),
        "adapter": _adapter("adapter"),
        "lora_target_linear": when_on("lora_target_linear", "lora_target_modules", "all-linear"),
        # axolotl trains the union of both keys
        "lora_target_modules": lambda draft, value: None if draft.old.get("lora_target_linear") else _targets(draft, value),
        "flash_attention": when_on("flash_attention", "attn_implementation", "flash_attention_2"),
        "sdp_attention": when_on("sdp_attention", "attn_implementation", "sdpa"),
        "val_set_size": lambda draft, value: draft.set("test_split_size", value) if value else None,
        "evals_per_epoch": _per_epoch("evals_per_epoch", "eval"),
        "saves_per_epoch": _per_epoch("saves_per_epoch", "save"),
        "special_tokens": _special_tokens,
        "wandb_project": _wandb("WANDB_PROJECT"),
        "wandb_entity": _wandb("WANDB_ENTITY"),
        "rl": _loss,
        "hub_model_id": lambda draft, value: (draft.set("hub_model_id", value), draft.set("push_to_hub", True)),
        "model_type": needless("model_type"),
        "tokenizer_type": needless("tokenizer_type"),
        "tokenizer_config": to("tokenizer_name_or_path"),
        "is_llama_derived_model": needless("is_llama_derived_model"),
        "strict": needless("strict"),
        "dataset_prepared_path": needless("dataset_prepared_path"),
        "pad_to_sequence_len": needless("pad_to_sequence_len"),
        "train_on_inputs": lambda draft, value: (
            draft.lost.__setitem__("train_on_inputs", "loss falls on the answers") if value else None
        ),
        "early_stopping_patience": lost(
            "early_stopping_patience", "no run stops early; `load_best_model_at_end` keeps the best"
        ),
        "eval_steps": lambda draft, value: (draft.set("eval_strategy", "steps"), draft.set("eval_steps", value)),
        "save_steps": lambda draft, value: (draft.set("save_strategy", "steps"), draft.set("save_steps", value)),
        "cosine_min_lr_ratio": lambda draft, value: (
            draft.values.__setitem__("lr_scheduler_type", "cosine_with_min_lr"),
            draft.set("lr_scheduler_kwargs", {"min_lr_rate": value}),
        ),
    },
}
