"""How each old key of alignment-handbook and TRL is written today, and which of them others share; `migrate` applies it."""

from typing import Any

from llmrecipes.migrate.axolotl import AXOLOTL
from llmrecipes.migrate.draft import Draft, by_name, lost, needless, read_elsewhere, to, when_on
from llmrecipes.migrate.llamafactory import LLAMAFACTORY


def translate(draft: Draft, key: str, value: Any) -> None:
    """Converts one old key: by its translation, by its new name, or unchanged."""
    own = OF_TOOL.get(draft.tool, {}).get(key) or TRANSLATIONS.get(key)
    if key == "max_prompt_length" and draft.stage == "ppo":
        own = by_name
    if value is not None:
        (own or by_name)(draft, key, value)


def _mixture(draft: Draft, key: str, value: dict) -> None:
    """alignment-handbook's mixture: its `weight` is the share taken of a source, which becomes a slice of the split."""
    sources = []
    for entry in value.get("datasets") or []:
        names = {"id": "path", "config": "name"}
        source = {names.get(k, k): v for k, v in entry.items() if v is not None and k != "weight"}
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
    for other in value.keys() - {"datasets", "test_split_size"}:
        why = "`seed` shuffles the sources" if other == "seed" else "no key means the same"
        draft.lost[f"dataset_mixture.{other}"] = why


def _mixer(draft: Draft, key: str, value: dict) -> None:
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


def _one_dataset(draft: Draft, key: str, value: str) -> None:
    old = draft.old
    source = {"path": value, **({"name": old["dataset_config"]} if old.get("dataset_config") else {})}
    draft.set("datasets", [{**source, "split": old.get("dataset_train_split", "train")}])
    if _evaluates(draft):
        draft.set("eval_datasets", [{**source, "split": old.get("dataset_test_split", "test")}])


def _evaluates(draft: Draft) -> bool:
    strategy = draft.old.get("eval_strategy", draft.old.get("evaluation_strategy", "no"))
    return strategy not in ("no", False) or bool(draft.old.get("do_eval"))


def _template(draft: Draft, key: str, value: str) -> None:
    if "{" not in value:  # axolotl's and LlamaFactory's name of a template
        draft.lost["chat_template"] = f"`{value[:40]}`: the tokenizer's own template is used"
    elif "chat_template_path" in draft.keys:
        draft.template = value
    else:
        draft.lost["chat_template"] = "the template in the model's folder is used; set it in the SFT stage before this one"


def _launched(draft: Draft, key: str, value: Any) -> None:
    file = "fsdp2"
    if key == "deepspeed":
        file = "zero3" if any(part in str(value).lower() for part in ("zero3", "z3", "stage3")) else "zero2"
    draft.lost[key] = f"is the launch's: accelerate launch --config_file configs/accelerate/{file}.yaml ..."


def _precision(draft: Draft, key: str, value: Any) -> None:
    draft.set("bf16", "auto" if value in (True, "auto") else value)  # on if the hardware supports it


def _warmup(draft: Draft, key: str, value: float) -> None:
    if not draft.old.get("warmup_steps"):
        draft.set("warmup_steps", value)


def _rpo(draft: Draft, key: str, value: float) -> None:
    loss = draft.old.get("loss_type") or "sigmoid"
    draft.values["loss_type"] = [*([loss] if isinstance(loss, str) else loss), "sft"]
    draft.set("loss_weights", [*[1.0] * (len(draft.values["loss_type"]) - 1), value])


TRANSLATIONS = {
    "bf16": _precision,
    "tf32": lost("is set on the GPU that has it; add `tf32: true` there"),
    "warmup_ratio": _warmup,
    "max_steps": lambda draft, key, value: draft.set("max_steps", value) if value > 0 else draft.needless.append(key),
    "gradient_checkpointing": to("activation_checkpointing", bool),
    "gradient_checkpointing_kwargs": to("activation_checkpointing_kwargs"),
    "packing_strategy": to("packing_strategy", lambda v: {"ffd": "bfd", "bfd-requeue": "bfd_split"}.get(v, v)),
    "overwrite_output_dir": lost("overwrites finished work; give --force when that is meant"),
    "max_prompt_length": lost("`max_length` holds for prompt and answer together"),
    "dataset_kwargs": lost("the chat template decides; TRL reads none of it any more"),
    "dataset_mixture": _mixture,
    "dataset_mixer": _mixer,
    "dataset_name": _one_dataset,
    "dataset_splits": read_elsewhere,
    "dataset_configs": read_elsewhere,
    "dataset_config": read_elsewhere,
    "dataset_train_split": read_elsewhere,
    "dataset_test_split": read_elsewhere,
    "chat_template": _template,
    "do_train": needless,
    "do_eval": needless,
    "do_predict": lost("nothing is predicted; recipes/sample.py writes answers"),
    "save_safetensors": needless,
    "use_flash_attention_2": when_on("attn_implementation", "flash_attention_2"),
    "group_by_length": when_on("train_sampling_strategy", "group_by_length"),
    "adafactor": when_on("optim", "adafactor"),
    "logging_dir": lambda draft, key, value: draft.environment("TENSORBOARD_LOGGING_DIR", value),
    "resume_from_checkpoint": needless,
    "hub_token": lost("set HF_TOKEN, or log in by `hf auth login`"),
    "push_to_hub_token": lost("set HF_TOKEN, or log in by `hf auth login`"),
    "deepspeed": _launched,
    "fsdp": _launched,
    "fsdp_config": _launched,
    "rpo_alpha": _rpo,
    "trl": lost("its keys stand on the top level here"),
}
OF_TOOL = {"LlamaFactory": LLAMAFACTORY, "axolotl": AXOLOTL}
