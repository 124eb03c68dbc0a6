"""Tiny models, adapters and pairs that the tests of adapters share, and recipes run on them in this process."""

import importlib
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from recipe_types import recipe_types
from training_toys import CONFIG

from llmrecipes.config import ModelArguments, RunArguments
from llmrecipes.models import load_policy
from llmrecipes.parsing import parse

TEXTS = ["Ann has a red hat.", "Bob has 12 blue hats.", "Who has a hat? Ann."] * 5


CONFIGS = {
    "llama": CONFIG | {"max_position_embeddings": 64},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},  # Conv1D, tied embeddings
}


TARGETS = {"llama": ["q_proj", "up_proj"], "gpt2": ["c_attn", "c_fc"]}


PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Who has {i}?"}],
        "chosen": [{"role": "assistant", "content": "Ann."}],
        "rejected": [{"role": "assistant", "content": "Bob has a hat."}],
    }
    for i in range(12)
]


TOKENS = torch.tensor([[5, 9, 30, 71, 100, 250, 8]])


def add_adapter(model, folder, seed=1, tokenizer=None, task_type="CAUSAL_LM", **changes) -> PeftModel:
    """`model` under a random adapter, which is saved in `folder`."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "task_type": task_type, **changes}))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return wrapped.eval()


def load(path, of=load_policy, **changes):
    return of(ModelArguments(model_name_or_path=str(path), **changes), None).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def assert_close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def run_recipe(stage, start, output_dir, *options, peft=True) -> dict:
    """The manifest of a recipe run in this process, two steps on PAIRS, by default with LoRA."""
    data = output_dir.parent / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    argv = ["--model_name_or_path", str(start), "--datasets", str(data), "--output_dir", str(output_dir), "--bf16", "false"]
    argv += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--activation_checkpointing", "false"]
    argv += ["--report_to", "none", "--use_cpu", *options]
    argv += ["--use_peft", "--lora_target_modules", "all-linear", "--lora_r", "4"] if peft else []
    if stage == "ppo":
        argv += ["--max_completion_length", "4", "--gradient_accumulation_steps", "1", "--num_ppo_epochs", "1"]
        argv += ["--logging_steps", "1"]
    recipe = importlib.import_module(f"recipes.{stage}")
    recipe.main(*parse(*recipe_types(stage), argv=argv))
    return json.loads((output_dir / "manifest.json").read_text())


def run_merge(start, output_dir, *options) -> None:
    recipe = importlib.import_module("recipes.merge")
    argv = ["--model_name_or_path", str(start), "--output_dir", str(output_dir), *options]
    recipe.main(*parse(RunArguments, recipe.MergeArguments, ModelArguments, argv=argv))
