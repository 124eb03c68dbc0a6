"""FSDP2 and DeepSpeed ZeRO under PPO: frozen models sharded like the trained one, whole weights while decoding.

FSDP2 holds the weights outside of decoder layers (embeddings, head) together only within a forward call of the module it
wrapped. PPO does more with its models than one forward call each, so whatever it does runs inside such a call:
`FrozenModel.forward`, `PolicyAndValue.forward` and `run_within` take a function.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager

from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel


class FrozenModel(nn.Module):
    """A reference or reward model behind one forward call: `forward(function, ...)` is `function(model, ...)`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.config = model.config  # DeepSpeed sizes its buffers by it
        self._no_split_modules = model._no_split_modules  # FSDP's shard groups

    def forward(self, function: Callable, *args, **kwargs):
        return function(self.model, *args, **kwargs)

    def tie_weights(self) -> None:
        """FSDP unties what shares memory when it moves weights, and asks for this."""
        self.model.tie_weights()


def shard_frozen(model: FrozenModel, accelerator: Accelerator) -> nn.Module:
    """`model` sharded as the trained model will be; on the device as it is, where nothing is sharded."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(model, accelerator)
    if not accelerator.is_fsdp2:
        return model.to(accelerator.device)
    plugin = accelerator.state.fsdp_plugin
    # accelerate keeps the first model's layer classes for all later ones, which may be of another architecture.
    kept = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = kept


def run_within(model: nn.Module, function: Callable):
    """function(), within a forward call of `model` where FSDP2 needs that."""
    return model(function=function) if isinstance(model, FSDPModule) else function()


@contextmanager
def whole_weights(policy: nn.Module, wrapped: nn.Module, accelerator: Accelerator):
    """Every process holds all of the policy within, so that decoding needs no communication for each token and each
    process may decode as many as it has to. To be entered within `run_within`.

    policy: part of `wrapped`, what accelerate made of the trained module.
    """
    if accelerator.is_fsdp2:
        groups = [module for module in policy.modules() if isinstance(module, FSDPModule)]
        reshard = accelerator.state.fsdp_plugin.reshard_after_forward
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        try:
            yield
        finally:
            for group in groups:
                group.set_reshard_after_forward(reshard, recurse=False)
                group.reshard()
    elif is_partitioned(policy):
        from trl.models.utils import add_hooks, remove_hooks

        with gathered([policy]):
            remove_hooks(wrapped)
            try:
                yield
            finally:
                add_hooks(wrapped)
    else:
        yield


def is_partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 has spread the weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered(models: Iterable[nn.Module], write: bool = False):
    """The weights of ZeRO-3's models are whole within; with `write` what process 0 wrote is spread again."""
    parameters = [p for model in models for p in model.parameters() if hasattr(p, "ds_id")]
    with ExitStack() as stack:
        if parameters:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None))
        yield


def copy_model(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of its own, spread over the processes like the original where ZeRO-3 has read it."""
    if not is_partitioned(model):
        return copy.deepcopy(model)
    kind = AutoModelForSequenceClassification if hasattr(model, "score") else AutoModelForCausalLM
    twin = kind.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    copy_weights(model, twin)
    return twin


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Weights of `source` into `target`, a module of the same shape."""
    with gathered([source]), gathered([target], write=True):
        target.load_state_dict(source.state_dict())
