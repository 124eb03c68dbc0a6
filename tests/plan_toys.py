"""A model's sizes, a job, and an SFT that is too large, shared by the tests of plans."""

import json
from pathlib import Path

import yaml

from llmrecipes.keys import recipe_keys
from llmrecipes.parsing import Options, collect
from llmrecipes.plan import make_plan
from llmrecipes.plan.architecture import read_architecture
from llmrecipes.plan.job import Job
from llmrecipes.plan.lookup import KNOWN
from llmrecipes.plan.rollouts import Rollouts

ROOT = Path(__file__).parent.parent

LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}  # fmt: skip


def job(config, **values) -> Job:
    """A micro-batch of 4 × 512 tokens, mixed precision; `rollouts` as PPO or GRPO has them."""
    grpo = values.pop("grpo", False)
    a = read_architecture(dict(config), "test")
    if values.pop("ppo", False) or grpo:
        r = {"prompt": 256, "response": 128, "decoded": 8, "responses": 64, "epochs": 4, "value": a, "reward": None,
             "separate_value": "lora" not in values and not grpo, "reward_bytes": 4,
             "reference_bytes": 0 if "lora" in values else 4,
             "chunk": None, "temperature": 1.0, "offload": False, "vllm": 0.0}  # fmt: skip
        values |= {"head": "rollouts", "length": 384, "has_reference": "lora" not in values, "rollouts": Rollouts(**r)}
        values |= {"head": "chunked", "padded": True} if grpo else {}
    default = {"head": "logits", "rows": 1, "has_reference": False, "batch": 4, "accumulation": 1, "length": 512, "gpus": 1,
               "weight_bytes": 4, "autocast": True, "optimizer": 8, "checkpointing": False, "padded": False}  # fmt: skip
    return Job(architecture=a, **default | values)


def plan_of(path, words=None, **options) -> dict:
    path = Path(path)
    given = {key: [str(value)] for key, value in (words or {}).items()}
    settings, _, problems = collect(Options(given, str(path)), recipe_keys(ROOT / "recipes" / f"{path.stem}.py"))
    assert not problems
    return make_plan(settings, str(path), **options)


def write_sft(tmp_path):
    """An SFT of a 7B model that is too large for one GPU of 24 GB."""
    (tmp_path / "model").mkdir()
    mistral = yaml.safe_load(KNOWN.read_text())["mistralai/Mistral-7B-v0.1"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(mistral))
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n' * 640)
    values = {"model_name_or_path": str(tmp_path / "model"), "datasets": [str(tmp_path / "rows.jsonl")], "num_gpus": 1,
              "num_train_epochs": 2, "per_device_train_batch_size": 8, "max_length": 2048,
              "output_dir": str(tmp_path)}  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "sft.yaml"


def of_stage(sft, stage, **values):
    """The same YAML for another stage."""
    path = sft.with_name(f"{stage}.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(sft.read_text()) | {"max_steps": 3} | values))
    return path
