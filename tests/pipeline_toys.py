"""The smoke chain through the real command line."""

from pathlib import Path

from forked import run_python

ROOT = Path(__file__).parent.parent


STAGES = ["tokenizer", "pretrain", "sft", "sample", "rank", "reward", "dpo", "ppo", "evaluate"]


def pipeline(output_dir, *argv, config="configs/smoke/pipeline.yaml"):
    return run_python("recipes/pipeline.py", "--config", config, "--output_dir", output_dir, *argv, children=True)
