"""A tiny model's config, texts and arguments shared by the tests of training."""

import torch
from transformers import TrainingArguments

from llmrecipes.models import build_policy

NAMES, COLOURS = ("Ann", "Bob", "Cleo", "Dan"), ("red", "green", "blue", "grey")


TEXTS = [f"{name} has a {colour} hat." for name in NAMES for colour in COLOURS] * 4


CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def arguments(output_dir, config_type=TrainingArguments, **values):
    values = {
        "bf16": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
    } | values
    return config_type(output_dir=str(output_dir), use_cpu=True, report_to="none", disable_tqdm=True, **values)


def save_model(config: dict, tokenizer, folder) -> str:
    """A new policy of `config` with its tokenizer, saved in `folder`."""
    torch.manual_seed(0)
    build_policy(config, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
