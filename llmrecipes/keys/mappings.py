"""What the mappings hold that some keys take as their value, where no dataclass of a library says so."""

from dataclasses import dataclass
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
