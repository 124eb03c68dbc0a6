"""How a run is sharded over processes: FSDP2 and DeepSpeed ZeRO, selected in accelerate's launch config or by the keys
`fsdp` and `deepspeed` of TrainingArguments."""

import os
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from llmrecipes.config import InputError, StageArguments


def launch_of(args: StageArguments) -> dict:
    """What a checkpoint's optimizer state depends on besides the config."""
    deepspeed = getattr(args, "deepspeed_plugin", None)
    sharding = f"ZeRO-{deepspeed.zero_stage}" if deepspeed else "FSDP" if _fsdp(args) else "none"
    return {"processes": int(os.environ.get("WORLD_SIZE", 1)), "sharding": sharding}


def prepare_sharding(args: StageArguments) -> None:
    """To be called before a Trainer is built with `args`: makes it shard on CPUs too, and keeps outputs in full precision.

    Raises:
        InputError: the launch config would save no loadable model.
    """
    fsdp, deepspeed = _fsdp(args), getattr(args, "deepspeed_plugin", None)
    if fsdp and str(fsdp["fsdp_version"]) != "2":
        raise InputError("fsdp_version: 2 is needed (configs/accelerate/fsdp2.yaml)")
    if fsdp and fsdp["state_dict_type"] != "FULL_STATE_DICT":
        raise InputError("fsdp_state_dict_type: FULL_STATE_DICT is needed, other types save no loadable model")
    if deepspeed and deepspeed.zero_stage == 3 and not deepspeed.zero3_save_16bit_model:
        raise InputError("zero3_save_16bit_model: true is needed, without it ZeRO-3 saves no loadable model")
    getattr(args, "device", None)  # TrainingArguments joins the process group on first access to the device
    if fsdp:
        _shard_on_cpus()
        _keep_float32_outputs(args)
        _load_optimizers_of_idle_weights()


def layers_of(model: torch.nn.Module) -> set[str]:
    """The classes of layers that FSDP shards one by one, without those that transformers names and `model` does not have,
    such as layers of images in a model of text, at which accelerate would end."""
    return {type(module).__name__ for module in model.modules()} & set(getattr(model, "_no_split_modules", None) or ())


def make_shardable(model: torch.nn.Module) -> None:
    """Leaves `model` the names of those layers alone that it has.

    Raises:
        InputError: the launch config has rank 0 send the weights to the others, and there are some that are no parameters,
            such as DeepSeek-V3's balance of its experts: accelerate 1.15 sends parameters alone, and ends with a traceback.
    """
    model._no_split_modules = layers_of(model)
    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    if not all(os.environ.get(name, "").lower() in ("true", "1") for name in names):
        return
    if others := sorted(dict(model.named_buffers()).keys() & model.state_dict().keys()):
        raise InputError(
            f"fsdp_cpu_ram_efficient_loading: {type(model).__name__} has weights that are no parameters ({others[0]}), "
            "which accelerate cannot send; set it to false in a copy of the launch config"
        )


def _fsdp(args: StageArguments) -> dict | None:
    """fsdp_version and state_dict_type, None without FSDP."""
    own = getattr(args, "fsdp_plugin_args", None) or {}  # made by TrainingArguments from its key `fsdp`
    if not own and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    names = {"fsdp_version": "FSDP_VERSION", "state_dict_type": "FSDP_STATE_DICT_TYPE"}
    return {key: own.get(key, os.environ.get(name)) for key, name in names.items()}


def _shard_on_cpus() -> None:
    """accelerate looks only at the device type and would silently train full copies (DDP) on CPUs. There is no public
    setting for this, so its state is changed before the Trainer's Accelerator reads it."""
    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_GPU


def _keep_float32_outputs(args: StageArguments) -> None:
    """In mixed precision accelerate makes FSDP2 cast a model's outputs to 16 bits: DPO would subtract log-probabilities of
    three digits. Trainer builds accelerate's FSDP plugin from these arguments and takes the rest from the launch config."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if getattr(args, "bf16", False) or getattr(args, "fp16", False):
        kind = torch.bfloat16 if args.bf16 else torch.float16
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=kind)
        args.fsdp_plugin_args = (args.fsdp_plugin_args or {}) | {"mixed_precision_policy": policy}


def expect_idle_weights(args: TrainingArguments, model: torch.nn.Module) -> None:
    """Lets DDP train a model with parts that no text reaches, such as layers of images, whose gradients it would await."""
    config = getattr(model, "config", None)
    if args.ddp_find_unused_parameters is None and config is not None and config.get_text_config() is not config:
        args.ddp_find_unused_parameters = True


def _load_optimizers_of_idle_weights() -> None:
    """Lets FSDP2 load the optimizer of a model with weights that no text reaches, such as layers of images: they have no
    gradient, so the optimizer saves no state of theirs, at which torch would end. There is no public setting for this."""
    from torch.distributed.checkpoint import state_dict

    load = state_dict.set_optimizer_state_dict

    def load_what_was_saved(*args, options, **kwargs):
        return load(*args, options=replace(options, strict=False), **kwargs)

    if load.__name__ != load_what_was_saved.__name__:
        state_dict.set_optimizer_state_dict = load_what_was_saved


def refuse_several_gpus(stage: str, args: StageArguments) -> None:
    """InputError if this one process sees several GPUs: Trainer would use DataParallel."""
    if getattr(args, "n_gpu", 1) > 1:
        raise InputError(
            f"{stage}: {args.n_gpu} GPUs in one process, over which Trainer would spread larger batches; start "
            "it with `accelerate launch`, one process per GPU, or set CUDA_VISIBLE_DEVICES=0"
        )
