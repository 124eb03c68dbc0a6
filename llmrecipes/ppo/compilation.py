"""`torch_compile` in PPO: the repeated layers of every model, compiled once for rows of any length.

Trainer would compile `PolicyAndValue` as a whole, for each length anew. Here each layer is compiled in place, so that the
weights keep their names, with batch and length as variables; layers of one shape share their code, also across models.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from inspect import signature

import torch
from transformers import AttentionInterface, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from llmrecipes.attention import attend_in_products
from llmrecipes.config import InputError

# Versions of one layer's code, far more than there are kinds of models x (with and without gradient, adapter, one row).
# torch's own limit of 8 would soon be used up, and further versions would run uncompiled.
VERSIONS = 64
BACKENDS = ("inductor", "aot_eager", "eager")


def check_compilation(args: TrainingArguments) -> None:
    """Raises InputError for settings that PPO cannot compile with, also those of the launch config."""
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise InputError(
            "dynamo_backend: of the launch config would compile PPO's models anew for each length of a batch; leave it "
            "out there, and set torch_compile: true"
        )
    if not args.torch_compile:
        return
    if args.torch_compile_backend not in BACKENDS:
        raise InputError(f"torch_compile_backend: {args.torch_compile_backend!r} is not one of {', '.join(BACKENDS)}")
    if args.deepspeed_plugin:
        raise InputError("torch_compile: does not work with DeepSpeed in PPO; leave it out, or launch with ddp.yaml")
    if args.torch_compile_mode in ("reduce-overhead", "max-autotune"):
        raise InputError(
            f"torch_compile_mode: {args.torch_compile_mode} records a CUDA graph for each length of a batch, and PPO's "
            "responses differ in length; leave it out, or use max-autotune-no-cudagraphs"
        )
    if args.torch_compile_mode not in (None, "default") and args.torch_compile_backend != "inductor":
        raise InputError(f"torch_compile_mode: {args.torch_compile_backend} has no modes; leave it out")


def compile_layers(trainer) -> None:
    """With torch_compile, compiles the layers of a PPOTrainer's models. Raises InputError for a model in which transformers
    marks none, or whose weights are quantised."""
    args, trained = trainer.args, trainer.model
    if not args.torch_compile:
        return
    # Falcon and others ask for "sdpa" by that name, so it keeps it; for all but the modules marked below it is the same.
    AttentionInterface.register("sdpa", attend_in_products)
    models = [trained.policy, *([] if trained.shares_trunk else [trained.value_model])]
    models += [frozen.model for frozen in (trainer.ref_model, *trainer.rewards.models) if frozen is not None]
    for model in models:
        if getattr(model, "is_quantized", False):
            raise InputError("torch_compile: not with load_in_4bit or load_in_8bit, whose kernels were not tested with it")
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise InputError(f"torch_compile: a {type(model).__name__} has no layers that could be compiled; leave it out")
        limit = {"recompile_limit": VERSIONS} if "recompile_limit" in signature(torch.compile).parameters else {}
        if not limit:  # torch before 2.13, as on machines whose own build is used, has one limit for all code
            torch._dynamo.config.recompile_limit = VERSIONS
        for layer in layers:
            for module in layer.modules():
                module.in_products = True
            layer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=True, **limit)


def uncompiled(args: TrainingArguments) -> AbstractContextManager:
    """Compiled layers run uncompiled inside the block: decoding has a cache that grows with each token."""
    return torch.compiler.set_stance("force_eager") if args.torch_compile else nullcontext()
