"""Muon for the hidden matrices and AdamW for the rest, as one optimizer that Trainer can schedule, save and load."""

import math
from collections import defaultdict

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

BATCH = 1 << 22  # numbers of bfloat16 matrices that are orthogonalised at a time on a CPU


class Muon(torch.optim.Muon):
    """torch.optim.Muon (Jordan et al. 2024), faster on CPUs: the same step on many matrices of one shape at a time, where
    torch takes one after another, in products so small that starting them takes longer than computing them. In bfloat16
    with AMX, with the same bits as torch's; without it in float32, which is faster there.

    Under FSDP2 the momentum is sharded like the weights, and every process orthogonalises the full matrices; in bfloat16 one
    after another, so that it holds only one of them at a time.
    """

    @torch.no_grad()
    def step(self, closure=None):
        first = self.param_groups[0]["params"][0]
        on_cpu, is_sharded = first.device.type == "cpu", isinstance(first, DTensor)
        if not on_cpu and not is_sharded:
            return super().step(closure)
        fast = not on_cpu or torch.cpu.get_capabilities().get("amx_bf16", False)
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                size = len(parameters) if not fast else 1 if is_sharded else max(1, BATCH // shape.numel())
                for start in range(0, len(parameters), size):
                    self._update(parameters[start : start + size], group, torch.bfloat16 if fast else torch.float32)

    def _update(self, parameters: list[torch.Tensor], group: dict, dtype: torch.dtype) -> None:
        """One step for matrices of the same shape, orthogonalised together in `dtype`."""
        height, width = parameters[0].shape
        updates = orthogonalize(torch.stack([self._momentum(p, group) for p in parameters]), group, dtype)
        for parameter, update in zip(parameters, updates, strict=True):
            if isinstance(parameter, DTensor):  # every process computes all of it and keeps its shard
                update = distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, height / width)))

    def _momentum(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        """Nesterov momentum (height, width) of the gradient, gathered if it is sharded."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        momentum = parameter.grad.lerp(buffer, group["momentum"])
        return momentum.full_tensor() if isinstance(momentum, DTensor) else momentum


def orthogonalize(matrices: torch.Tensor, group: dict, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The (n, height, width) matrices with singular values moved close to 1, by `ns_steps` Newton-Schulz iterations
    X <- aX + b(XXᵀ)X + c(XXᵀ)²X in `dtype`: UΣVᵀ becomes about UVᵀ."""
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on the hidden matrices, AdamW on embeddings, head, norms and biases; one optimizer.

    Learning-rate schedulers and checkpoints see the parameter groups and states of both.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict]):
        on_gpu = all(parameter.is_cuda for group in adamw_groups for parameter in group["params"])
        self.parts = [
            # match_rms_adamw (Moonshot 2025) would rescale updates; the original scaling is the one that was measured here.
            Muon(muon_groups),
            torch.optim.AdamW(adamw_groups, fused=on_gpu or None),
        ]
        super().__init__([*muon_groups, *adamw_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Makes both parts use this optimizer's groups and state, so that it saves and loads like any other."""
        muon, adamw = self.parts
        size = len(muon.param_groups)
        muon.param_groups, adamw.param_groups = self.param_groups[:size], self.param_groups[size:]
        muon.state = adamw.state = self.state

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()


def build_muon(model: torch.nn.Module, args: TrainingArguments, muon_learning_rate: float) -> MuonAdamW:
    """MuonAdamW for `model`: Muon at `muon_learning_rate`, AdamW at `args.learning_rate` with the betas of `args`."""
    ends = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    matrices, decayed, others = [], [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            inner = parameter.ndim == 2 and id(parameter) not in ends
            (matrices if inner else decayed if parameter.ndim >= 2 else others).append(parameter)
    adamw = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return MuonAdamW(
        [{"params": matrices, "lr": muon_learning_rate, "weight_decay": args.weight_decay}],
        [
            {"params": decayed, "weight_decay": args.weight_decay, **adamw},
            {"params": others, "weight_decay": 0.0, **adamw},
        ],
    )
