"""How axolotl's own keys are written today."""

from typing import Any

from llmrecipes.migrate.draft import Draft, Translation, lost, needless, to, when_on
from llmrecipes.migrate.llamafactory import adapter, loss, targets


def _datasets(draft: Draft, key: str, value: list) -> None:
    sources = []
    for entry in value if isinstance(value, list) else [value]:
        entry = entry if isinstance(entry, dict) else {"path": entry}
        kept = {k: v for k, v in entry.items() if k in ("path", "name", "split", "data_files", "revision") and v is not None}
        if entry.get("type") not in (None, "chat_template", "completion"):
            draft.lost[f"{key}.type"] = "set the prompt's words; here columns say the shape, the chat template the words"
        for k in entry.keys() - kept.keys() - {"type", "ds_type"}:
            draft.lost[f"{key}.{k}"] = "rows of the usual shapes are recognised; else name a `reader`"
        sources.append(kept)
    draft.set("eval_datasets" if key == "test_datasets" else "datasets", sources)


def _per_epoch(prefix: str) -> Translation:
    def translation(draft: Draft, key: str, value: float) -> None:
        epochs = draft.old.get("num_epochs") or 1
        if value and value > 0:
            draft.set(f"{prefix}_strategy", "steps")
            draft.set(f"{prefix}_steps", round(1 / (value * epochs), 6) if value * epochs > 1 else 0.999999)

    return translation


def _special_tokens(draft: Draft, key: str, value: dict) -> None:
    for name, token in value.items():
        if name in ("eos_token", "pad_token") and name in draft.keys:
            draft.set(name, token)
        else:
            draft.lost[f"special_tokens.{name}"] = "the tokenizer's own is used"


def _wandb(name: str) -> Translation:
    def translation(draft: Draft, key: str, value: Any) -> None:
        if value:
            draft.environment(name, value)
            draft.set("report_to", "wandb")

    return translation


AXOLOTL = {
    "datasets": _datasets,
    "test_datasets": _datasets,
    "adapter": adapter,
    "lora_target_linear": when_on("lora_target_modules", "all-linear"),
    # axolotl trains the union of both keys
    "lora_target_modules": lambda draft, key, value: (
        None if draft.old.get("lora_target_linear") else targets(draft, key, value)
    ),
    "flash_attention": when_on("attn_implementation", "flash_attention_2"),
    "sdp_attention": when_on("attn_implementation", "sdpa"),
    "val_set_size": lambda draft, key, value: draft.set("test_split_size", value) if value else None,
    "evals_per_epoch": _per_epoch("eval"),
    "saves_per_epoch": _per_epoch("save"),
    "special_tokens": _special_tokens,
    "wandb_project": _wandb("WANDB_PROJECT"),
    "wandb_entity": _wandb("WANDB_ENTITY"),
    "rl": loss,
    "hub_model_id": lambda draft, key, value: (draft.set("hub_model_id", value), draft.set("push_to_hub", True)),
    "model_type": needless,
    "tokenizer_type": needless,
    "tokenizer_config": to("tokenizer_name_or_path"),
    "is_llama_derived_model": needless,
    "strict": needless,
    "dataset_prepared_path": needless,
    "pad_to_sequence_len": needless,
    "train_on_inputs": lambda draft, key, value: draft.lost.__setitem__(key, "loss falls on the answers") if value else None,
    "early_stopping_patience": lost("no run stops early; `load_best_model_at_end` keeps the best"),
    "eval_steps": lambda draft, key, value: (draft.set("eval_strategy", "steps"), draft.set("eval_steps", value)),
    "save_steps": lambda draft, key, value: (draft.set("save_strategy", "steps"), draft.set("save_steps", value)),
    "cosine_min_lr_ratio": lambda draft, key, value: (
        draft.values.__setitem__("lr_scheduler_type", "cosine_with_min_lr"),
        draft.set("lr_scheduler_kwargs", {"min_lr_rate": value}),
    ),
}
