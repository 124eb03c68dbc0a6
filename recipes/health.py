"""Health check of a reward model on held-out pairs: can a policy be trained against it?

Launch: python recipes/health.py --model_name_or_path outputs/quickstart/reward
        [--eval_datasets '[{path: outputs/quickstart/rank, split: test}]'] [--output_dir FOLDER]
Writes: health.json and health.md into the model's folder (or output_dir); exit code 0 if healthy, 3 if not.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes.config import DataArguments, InputError, ModelArguments
from llmrecipes.parsing import launch


@dataclass
class CheckArguments:
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the result; default: the model's own."})
    max_length: int | None = field(default=None, metadata={"help": "Longer pairs (tokens) are left out, as in training."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Responses a forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    seed: int = 42


def main(data, health, check, model):
    if not model.model_name_or_path:
        raise InputError("`model_name_or_path` is missing; give a reward model, e.g. outputs/quickstart/reward")

    from llmrecipes.data import load_by_split, load_train_eval
    from llmrecipes.logs import quiet_logs
    from llmrecipes.manifest import read_manifest
    from llmrecipes.reward_models.health import check_saved_model

    quiet_logs()
    folder = Path(model.model_name_or_path)
    output_dir = Path(check.output_dir or folder)
    if not check.output_dir and not folder.is_dir():
        raise InputError(f"`output_dir` is missing; {folder} is not a folder to write health.json into")
    trained = (read_manifest(folder) or {}).get("config", {})
    if not data.eval_datasets:  # use the pairs held out in its training
        data = DataArguments(*(trained.get(key) for key in ("datasets", "eval_datasets", "test_split_size")))
    if data.eval_datasets:
        sets = load_by_split(data.eval_datasets, check.seed, ("preference",))
    elif data.test_split_size:
        sets = {"held out": load_train_eval(data, trained["seed"], ("preference",))[1]}
    else:
        raise InputError("`eval_datasets` is missing; give preference pairs that the model was not trained on")
    check.output_dir, max_length = str(output_dir), check.max_length or trained.get("max_length")
    found = check_saved_model(folder, sets, health, model, check, max_length)
    sys.exit(0 if found["verdict"] == "healthy" else 3)


if __name__ == "__main__":
    launch(main, DataArguments, "llmrecipes.reward_models.health:HealthArguments", CheckArguments, ModelArguments)
