"""FSDP2 and DeepSpeed ZeRO under PPO: frozen models sharded like the trained one, whole weights while decoding.

FSDP2 gathers the weights outside of decoder layers (embeddings, head) only during a forward call of the module it wrapped.
PPO does more with its models than one forward call each, so everything it does runs inside such a call:
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

from llmrecipes.sharding import layers_of


class FrozenModel(nn.Module):
    """A reference or reward model behind one forward call: `forward(function, ...)` returns `function(model, ...)`."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.config = model.config  # DeepSpeed sizes its buffers by it
        self._no_split_modules = layers_of(model)  # FSDP wraps each of these layers

    def forward(self, function: Callable, *args, **kwargs):
        return function(self.model, *args, **kwargs)

    def tie_weights(self) -> None:
        """FSDP breaks tied weights apart when it moves them, and calls this to tie them again."""
        self.model.tie_weights()


def shard_frozen(model: FrozenModel, accelerator: Accelerator) -> nn.Module:
    """`model` sharded in the same way as the trained model; if nothing is sharded, moved to the device as it is."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(model, accelerator)
    if not accelerator.is_fsdp2:
        return model.to(accelerator.device)
    plugin = accelerator.state.fsdp_plugin
    # accelerate reuses the first model's layer classes for all later models, which may have another architecture.
    kept = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = kept


def run_within(model: nn.Module, function: Callable):
    """Calls and returns function(), inside a forward call of `model` if FSDP2 needs one."""
    return model(function=function) if isinstance(model, FSDPModule) else function()


@contextmanager
def whole_weights(policy: nn.Module, wrapped: nn.Module, accelerator: Accelerator):
    """Every process holds the whole policy inside the block, so that decoding needs no communication per token and each
    process can decode as many tokens as it has to. Must be entered inside `run_within`.

    policy: part of `wrapped`, the trained module as prepared by accelerate.
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
    """Whether ZeRO-3 has partitioned the weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered(models: Iterable[nn.Module], write: bool = False):
    """Gathers the weights of models under ZeRO-3 inside the block; with `write`, process 0's changes are partitioned
    again at its end."""
    parameters = [p for model in models for p in model.parameters() if hasattr(p, "ds_id")]
    with ExitStack() as stack:
        if parameters:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None))
        yield


def copy_model(model: PreTrainedModel) -> PreTrainedModel:
    """An independent copy, partitioned over the processes like the original if that is under ZeRO-3."""
    if not is_partitioned(model):
        return copy.deepcopy(model)
    kind = AutoModelForSequenceClassification if hasattr(model, "score") else AutoModelForCausalLM
    twin = kind.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    copy_weights(model, twin)
    return twin


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies the weights of `source` into `target`, a module of the same shape."""
    with gathered([source]), gathered([target], write=True):
        target.load_state_dict(source.state_dict())
