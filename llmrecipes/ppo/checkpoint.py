"""What PPO keeps on disk: a plain policy, the value model beside it, and the state that makes a resumed run exact."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from llmrecipes.config import InputError
from llmrecipes.ppo.policy_value import PolicyAndValue
from llmrecipes.ppo.rollout import Rollout

VALUE_MODEL_FOLDER = "value_model"


def save_models(model: PolicyAndValue, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the policy into `folder` (`from_pretrained` loads it) and the value model into `folder`/value_model.

    state_dict: the gathered weights of the whole module, where they are sharded over processes.
    """
    for name, part, target in (
        ("policy.", model.policy, Path(folder)),
        ("value_model.", model.value_model, Path(folder) / VALUE_MODEL_FOLDER),
    ):
        weights = None
        if state_dict is not None:
            weights = {key[len(name) :]: value for key, value in state_dict.items() if key.startswith(name)}
        part.save_pretrained(target, state_dict=weights)


def load_models(model: PolicyAndValue, folder: str | Path) -> None:
    """Reads back what `save_models` wrote, into the existing module."""
    for part, source in ((model.policy, Path(folder)), (model.value_model, Path(folder) / VALUE_MODEL_FOLDER)):
        if not (source / "config.json").is_file():
            raise InputError(f"{source}: holds no model; a PPO checkpoint has the policy and a folder {VALUE_MODEL_FOLDER}")
        _copy_weights(type(part).from_pretrained(source, dtype=part.dtype), part)


def _copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    target.load_state_dict(source.state_dict())


def save_ppo_state(folder: str | Path, rank: int, kl_coef: float, rollout: Rollout | None) -> None:
    """Writes this process's KL coefficient and the rollout still in use."""
    state = {"kl_coef": kl_coef, "rollout": None if rollout is None else rollout.state_dict()}
    torch.save(state, Path(folder) / f"ppo_state_{rank}.pt")


def load_ppo_state(folder: str | Path, rank: int, device) -> tuple[float, Rollout | None]:
    """Reads what `save_ppo_state` wrote. Raises InputError when this process has no such file."""
    path = Path(folder) / f"ppo_state_{rank}.pt"
    if not path.is_file():
        raise InputError(f"{path}: is missing; resume with as many processes as the checkpoint was written by")
    state = torch.load(path, map_location=device, weights_only=True)
    return state["kl_coef"], None if state["rollout"] is None else Rollout(**state["rollout"])
