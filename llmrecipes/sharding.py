"""How a run is spread over processes: FSDP2 and DeepSpeed ZeRO, chosen in accelerate's launch config or by the keys `fsdp`
and `deepspeed` of TrainingArguments."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from llmrecipes.config import InputError


def launch_of(args) -> dict:
    """What a checkpoint's optimizer state depends on beside the config.

    args: TrainingArguments, or a stage's own, which trains nothing.
    """
    deepspeed = getattr(args, "deepspeed_plugin", None)
    sharding = f"ZeRO-{deepspeed.zero_stage}" if deepspeed else "FSDP" if _fsdp(args) else "none"
    return {"processes": int(os.environ.get("WORLD_SIZE", 1)), "sharding": sharding}


def prepare_sharding(args) -> None:
    """To be called before a Trainer is made with `args`, which then shards on CPUs too and rounds no results.

    Raises:
        InputError: no model that loads would be saved.
    """
    fsdp, deepspeed = _fsdp(args), getattr(args, "deepspeed_plugin", None)
    if fsdp and str(fsdp["fsdp_version"]) != "2":
        raise InputError("fsdp_version: 2 is needed (configs/accelerate/fsdp2.yaml)")
    if fsdp and fsdp["state_dict_type"] != "FULL_STATE_DICT":
        raise InputError("fsdp_state_dict_type: FULL_STATE_DICT is needed, other types save no model that loads")
    if deepspeed and deepspeed.zero_stage == 3 and not deepspeed.zero3_save_16bit_model:
        raise InputError("zero3_save_16bit_model: true is needed, without it ZeRO-3 saves no model that loads")
    getattr(args, "device", None)  # TrainingArguments join the processes of a launch when first asked for the device
    if fsdp:
        _shard_on_cpus()
        _keep_float32_outputs(args)


def _fsdp(args) -> dict | None:
    """fsdp_version and state_dict_type, None without FSDP."""
    own = getattr(args, "fsdp_plugin_args", None) or {}  # made by TrainingArguments of their key `fsdp`
    if not own and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    names = {"fsdp_version": "FSDP_VERSION", "state_dict_type": "FSDP_STATE_DICT_TYPE"}
    return {key: own.get(key, os.environ.get(name)) for key, name in names.items()}


def _shard_on_cpus() -> None:
    """accelerate asks only for the kind of device and would silently train whole copies (DDP) on CPUs. There is no public
    way to tell it otherwise, so its state is set before the Trainer's Accelerator reads it."""
    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_GPU


def _keep_float32_outputs(args) -> None:
    """In mixed precision accelerate has FSDP2 round what a model returns: DPO would take differences of log-probabilities of
    three digits. Trainer makes accelerate's FSDP plugin from these arguments; the rest it reads from the launch config."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if getattr(args, "bf16", False) or getattr(args, "fp16", False):
        kind = torch.bfloat16 if args.bf16 else torch.float16
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=kind)
        args.fsdp_plugin_args = (args.fsdp_plugin_args or {}) | {"mixed_precision_policy": policy}
