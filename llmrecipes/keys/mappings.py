"""What the mappings hold that some keys take as their value: for the check of a config and for the editors' schemas."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

# Keys whose value is a mapping, and the dataclass that declares what it holds.
MAPPINGS = {
    "accelerator_config": "transformers.trainer_pt_utils:AcceleratorConfig",
    "gradient_accumulation_kwargs": "accelerate.utils.dataclasses:GradientAccumulationPlugin",
    "transformers_continuous_batching_config": "transformers.generation.configuration_utils:ContinuousBatchingConfig",
    "activation_checkpointing_kwargs": "llmrecipes.keys.mappings:CheckpointingKwargs",
    "gradient_checkpointing_kwargs": "llmrecipes.keys.mappings:CheckpointingKwargs",
    "fsdp_config": "llmrecipes.keys.mappings:FSDPConfig",
    "liger_kernel_config": "llmrecipes.keys.mappings:LigerKernelConfig",
}
# Keys of FSDP1 and of TPUs in `fsdp_config`, which FSDP2 would pass over, and what to write instead.
_FSDP2_DOES = "FSDP2 always does so; leave it out"
FSDP1 = {
    "sharding_strategy": "FSDP2 has `reshard_after_forward`: true for FULL_SHARD, false for SHARD_GRAD_OP",
    "offload_params": "FSDP2 has `cpu_offload`",
    **dict.fromkeys(("sync_module_states", "use_orig_params", "limit_all_gathers"), _FSDP2_DOES),
    **dict.fromkeys(
        ("backward_prefetch", "backward_prefetch_policy", "forward_prefetch"), "FSDP2 fetches ahead by itself; leave it out"
    ),
    **dict.fromkeys(("xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt"), "it is for TPUs; leave it out"),
}
# Entries of `generation_kwargs` that would take the place of a key, which the loss, messages and plans go on reading; and
# that key.
OWN_KEYS = {
    **{key: key for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")},
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "max_completion_length"),
    **dict.fromkeys(("num_return_sequences", "n"), "num_generations"),
}


@dataclass
class CheckpointingKwargs:
    """`activation_checkpointing_kwargs`: Trainer takes the last two, torch.utils.checkpoint the others (and a function,
    `context_fn`, which no YAML can hold)."""

    use_reentrant: bool | None = None
    preserve_rng_state: bool = True
    determinism_check: Literal["default", "none"] = "default"
    debug: bool = False
    early_stop: bool = True
    every_n_layers: int = 1
    offload: bool = False


@dataclass
class FSDPConfig:
    """What transformers reads of `fsdp_config` for FSDP2, with or without `fsdp_` before it. Not the keys of FSDP1 and of
    TPUs, which FSDP2 would pass over."""

    version: int = 2
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    cpu_ram_efficient_loading: bool = False
    auto_wrap_policy: str = "TRANSFORMER_BASED_WRAP"
    transformer_layer_cls_to_wrap: list[str] | None = None
    min_num_params: int = 0
    state_dict_type: str = "FULL_STATE_DICT"
    activation_checkpointing: bool = False


@dataclass
class LigerKernelConfig:
    """`liger_kernel_config`: what liger-kernel's functions for the architectures take, all together (0.8.5). It passes over
    a name that is not among those of the model's own."""

    rope: bool = True
    rms_norm: bool = True
    layer_norm: bool = True
    swiglu: bool = True
    geglu: bool = True
    relu_squared: bool = True
    cross_entropy: bool = False
    fused_linear_cross_entropy: bool = True


@cache
def generation_keys() -> frozenset[str]:
    """What transformers' GenerationConfig reads of `generation_kwargs`; it keeps any other name, and nothing ever looks at
    it."""
    package = find_spec("transformers").submodule_search_locations[0]
    source = Path(package, "generation", "configuration_utils.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r'kwargs\.pop\(\s*"([a-z]\w*)"', source))
