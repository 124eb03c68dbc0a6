"""What PPO saves: an ordinary policy folder, the value model beside it, and the state that makes a resumed run exact."""

from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from llmrecipes.config import InputError
from llmrecipes.models import load_weights
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.policy_value import PolicyAndValue
from llmrecipes.ppo.rollout import Rollout

VALUE_MODEL_FOLDER = "value_model"
VALUE_HEAD_FILE = "value_head.safetensors"
# What determines how rollouts are counted and split, and the name a user knows it by.
COUNTED_BY = {
    "world_size": "number of processes",
    "rollout_batch_size": "rollout_batch_size",
    "num_mini_batches": "num_mini_batches",
    "num_ppo_epochs": "num_ppo_epochs",
    "num_generations": "num_generations",
}


def save_models(model: PolicyAndValue, folder: str | Path, state_dict: dict | None = None) -> None:
    """Writes the policy (or its adapter) into `folder`, where `from_pretrained` finds it, and beside it the value model:
    a folder value_model, or value_head.safetensors for the head of a shared trunk.

    state_dict: the full weights, for a model of which this process holds only a shard.
    """
    folder = Path(folder)
    if state_dict is None:
        state_dict = model.state_dict()
    policy, value_model = (
        {name.removeprefix(part): tensor for name, tensor in state_dict.items() if name.startswith(part)}
        for part in ("policy.", "value_model.")
    )
    _save(model.policy, folder, policy)
    if model.shares_trunk:
        save_file(value_model, folder / VALUE_HEAD_FILE)
    else:
        _save(model.value_model, folder / VALUE_MODEL_FOLDER, value_model)


def _save(model: PreTrainedModel, folder: Path, state_dict: dict) -> None:
    # Tied weights gathered from several processes are copies, which save_pretrained cannot tell from weights of their own.
    for name in getattr(model, "all_tied_weights_keys", ()):
        state_dict.pop(name, None)
    model.save_pretrained(folder, state_dict=state_dict)


def load_models(model: PolicyAndValue, folder: str | Path) -> None:
    """Reads back what `save_models` wrote, into the existing module. Raises InputError where a part is missing."""
    folder = Path(folder)
    if isinstance(model.policy, PeftModel):
        _require(folder / "adapter_config.json")
        set_peft_model_state_dict(model.policy, load_peft_weights(str(folder), device="cpu"))
    else:
        _load_weights(folder, model.policy)
    if model.shares_trunk:
        _require(folder / VALUE_HEAD_FILE)
        model.value_model.load_state_dict(load_file(folder / VALUE_HEAD_FILE))
    else:
        _load_weights(folder / VALUE_MODEL_FOLDER, model.value_model)


def _load_weights(source: Path, target: PreTrainedModel) -> None:
    _require(source / "config.json")
    load_weights(source, target)


def _require(file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"{file}: is missing; a PPO checkpoint holds the policy or its adapter, and {VALUE_MODEL_FOLDER}/ or "
            f"{VALUE_HEAD_FILE}; resume with the `use_peft` and `value_model` it was written with"
        )


def count_broken(model: nn.Module) -> int:
    """How many trained weights, or this process's shards of them, hold a NaN or an infinity."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = [getattr(weight, "ds_tensor", getattr(weight, "_local_tensor", weight)) for weight in weights]
    return sum(not torch.isfinite(part.detach()).all() for part in parts)


def save_ppo_state(folder: str | Path, args: PPOConfig, kl_coef: float, rollout: Rollout | None) -> None:
    """Writes this process's KL coefficient, the rollout still in use, and the settings that rollouts are counted by."""
    state = {"kl_coef": kl_coef, "rollout": None if rollout is None else rollout.state_dict()}
    state["counted_by"] = {name: getattr(args, name) for name in COUNTED_BY}
    rank = args.process_index
    torch.save(state, Path(folder) / f"ppo_state_{rank}.pt")


def load_ppo_state(folder: str | Path, args: PPOConfig) -> tuple[float, Rollout | None]:
    """Reads what `save_ppo_state` wrote. Raises InputError when this process has no such file, or when rollouts were counted
    differently: the same global step would then mean another rollout, or another position in it."""
    path = Path(folder) / f"ppo_state_{args.process_index}.pt"
    if not path.is_file():
        raise InputError(f"{path}: is missing; resume with as many processes as the checkpoint was written by")
    state = torch.load(path, map_location=args.device, weights_only=True)
    for name, value in state.get("counted_by", {}).items():  # absent from checkpoints of older versions
        if value != getattr(args, name):
            raise InputError(
                f"{COUNTED_BY[name]}: is {getattr(args, name)}, but {folder} was written with {value}; resume with that, or "
                "start over from its policy in another output_dir"
            )
    return state["kl_coef"], None if state["rollout"] is None else Rollout(**state["rollout"])
