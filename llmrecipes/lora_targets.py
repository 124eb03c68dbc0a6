"""Where a new adapter goes: the names that a config gives, against those that the model has."""

import re
from collections.abc import Iterable

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora.layer import ParamWrapper
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmrecipes.config import InputError, nearest
from llmrecipes.data.tables import say


def require_targets(config: PeftConfig, model: PreTrainedModel) -> None:
    """InputError unless `model` has a place for each name in `lora_target_modules`, `lora_target_parameters` and
    `lora_modules_to_save`: of some that match nothing, PEFT would train the others alone, after a warning."""
    targets = config.target_modules
    modules = [name for name, _ in model.named_modules()]
    if isinstance(targets, str) and targets != "all-linear":
        _require_pattern(targets, modules, model)
    for key, wanted, names, choices in (
        ("lora_target_modules", () if isinstance(targets, str) else targets, modules, choices_of),
        ("lora_modules_to_save", config.modules_to_save, modules, choices_of),
        ("lora_target_parameters", config.target_parameters, [n for n, _ in model.named_parameters()], _parameters),
    ):
        for name in sorted(wanted or ()):
            if not any(f".{there}".endswith(f".{name}") for there in names):  # as PEFT compares them
                meant = nearest(name, {".".join(there.split(".")[-1 - name.count(".") :]) for there in names})
                raise InputError(f"{key}: no `{name}` here{meant}; {choices(model)}")


def tell_experts_left_out(config: PeftConfig, fitted: PeftModel, model: PreTrainedModel) -> None:
    """Says it if all-linear leaves out the experts of a mixture, as of gpt-oss: PEFT reaches only those that it knows."""
    reached = any(isinstance(module, ParamWrapper) for module in fitted.modules())
    experts = {_in_layer(name) for name, value in model.named_parameters() if ".experts." in name and value.dim() > 2}
    if config.target_modules == "all-linear" and experts and not reached:
        say(
            "lora_target_modules: all-linear leaves the experts of this mixture as they are; to train them too: "
            f"lora_target_parameters: [{', '.join(sorted(experts))}] with lora_dropout: 0"
        )


def choices_of(model: PreTrainedModel, unfit: Iterable[str] = ()) -> str:
    """The names of the layers that can carry an adapter, without the `unfit` ones, as advice."""
    kinds = (torch.nn.Linear, Conv1D)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    return f"name some of {', '.join(sorted(names.difference(unfit)))}" + ("" if unfit else ", or all-linear")


def _require_pattern(pattern: str, modules: list[str], model: PreTrainedModel) -> None:
    """InputError unless the regular expression matches the full path of a module."""
    try:
        is_found = any(re.fullmatch(pattern, name) for name in modules)
    except re.error as error:
        raise InputError(
            f"lora_target_modules: `{pattern}` is no regular expression ({error}); {choices_of(model)}"
        ) from None
    if not is_found:
        path = next((name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)), modules[-1])
        raise InputError(
            f"lora_target_modules: the pattern `{pattern}` matches no module's whole path, such as {path}; "
            f"{choices_of(model)}"
        )


def _parameters(model: PreTrainedModel) -> str:
    """The matrices of a layer, without its number; of a mixture's experts, which are one tensor, if there are any."""
    of_layers = {_in_layer(name): value.dim() for name, value in model.named_parameters() if value.dim() > 1}
    stacked = [name for name, dim in of_layers.items() if dim > 2]
    return f"name some of {', '.join(sorted(stacked or of_layers))}"


def _in_layer(name: str) -> str:
    """A parameter's name inside its layer."""
    return re.sub(r"^.*\.\d+\.", "", name)
