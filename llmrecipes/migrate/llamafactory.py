"""How LlamaFactory's own keys are written today; axolotl shares some of the translations."""

import json
from pathlib import Path
from typing import Any

from llmrecipes.migrate.draft import Draft, by_name, lost, needless, read_elsewhere, to, when_on


def _named_datasets(draft: Draft, key: str, value: str | list) -> None:
    """`dataset: a,b`: names in dataset_info.json, which is read if it exists."""
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


def targets(draft: Draft, key: str, value: str | list) -> None:
    """Which modules have adapters."""
    names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
    draft.set("lora_target_modules", "all-linear" if names in (["all"], ["all-linear"]) else names)


def adapter(draft: Draft, key: str, value: str) -> None:
    """Whether an adapter is trained, and on a quantised base."""
    if value in ("lora", "qlora"):
        draft.set("use_peft", True)
        if value == "qlora":
            draft.set("load_in_4bit", True)
        if draft.tool == "LlamaFactory" and "lora_alpha" not in draft.old and "lora_rank" in draft.old:
            draft.set("lora_alpha", 2 * draft.old["lora_rank"])  # its default
    elif value != "full":
        draft.lost[key] = f"{value} is not here; LoRA or all weights"


def _attention(draft: Draft, key: str, value: Any) -> None:
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
        draft.needless.append(key)


def loss(draft: Draft, key: str, value: str) -> None:
    """The loss of preference tuning."""
    if value in ("orpo", "simpo", "kto", "kto_pair", "grpo"):
        draft.lost["loss"] = f"{value} is another method than DPO; written as DPO, which is not the same"
    else:
        draft.set("loss_type", {"dpo": "sigmoid"}.get(value, value))


def _quantised(draft: Draft, key: str, value: int) -> None:
    draft.set("load_in_4bit" if value == 4 else "load_in_8bit", True)


LLAMAFACTORY = {
    "stage": read_elsewhere,
    "dataset": _named_datasets,
    "eval_dataset": _named_datasets,
    "dataset_dir": read_elsewhere,
    "max_samples": read_elsewhere,
    "finetuning_type": adapter,
    "lora_target": targets,
    "additional_target": to("lora_modules_to_save", lambda v: v if isinstance(v, list) else str(v).split(",")),
    "flash_attn": _attention,
    "quantization_bit": _quantised,
    "quantization_method": needless,
    "pref_loss": loss,
    "template": lost("the tokenizer's own chat template is used"),
    "overwrite_cache": needless,
    "plot_loss": needless,
    "val_size": lambda draft, key, value: draft.set("test_split_size", value) if value else None,
    "neat_packing": to("packing"),
    "max_new_tokens": lambda draft, key, value: by_name(draft, "max_completion_length", value),
    "pure_bf16": when_on("dtype", "bfloat16"),
}
