"""The exact answer: one training step of the real model classes on fake tensors, under torch's memory tracker.

FakeTensorMode runs every operator only for its shapes, so a model of any size takes seconds and no memory. As on a GPU:
flash attention, and TRL's tiled head without the buffers of its CPU fallback. PPO is traced at its update.
"""

from contextlib import ExitStack
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from llmrecipes.config import InputError
from llmrecipes.plan.architecture import text_model
from llmrecipes.plan.job import MODULES, Job, Rollouts
from llmrecipes.ppo.policy_value import LOGITS_BYTES, _logits, _SelectLogprobs, causal_lm
from llmrecipes.reward_models.scoring import token_hidden_states

# What differs under FakeTensorMode or on a CPU from a run on a GPU -> its replacement: detecting packed rows reads values,
# on a GPU the head's tiles are fused into Triton kernels, which need no buffers, and torch knows the shapes of grouped
# products in bfloat16 alone (transformers' fallback keeps the same).
AS_ON_A_GPU = {
    "transformers.masking_utils.find_packed_sequence_indices": lambda *_, **__: None,
    "trl.kernels.chunked_logprob._forward_tile": lambda *_, **__: None,
    "trl.kernels.chunked_logprob._backward_tile": lambda *_, **__: None,
    "trl.kernels.chunked_logprob._addmm_fp32": lambda *_, **__: None,
    "transformers.integrations.moe._can_use_grouped_mm": lambda inputs, weight, offsets: weight.dtype == torch.bfloat16,
}


class Tracker(MemTracker):
    """Torch's tracker without per-module peaks, which take most of its time; frozen weights get no hooks."""

    def _update_peak_stats(self, peak_state):
        for device, snapshot in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < snapshot["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = snapshot["Total"], dict(snapshot)

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        trained = all(parameter.requires_grad for parameter in module.parameters())
        return super()._track_module_params_and_buffers(module, install_grad_hooks and trained)


class Step(nn.Module):
    """The models of a step and the function that computes its loss from some of them, as one call of one module, as the
    tracker requires."""

    def __init__(self, models: dict[str, nn.Module], loss):
        super().__init__()
        self.models, self.loss = nn.ModuleDict(models), loss

    def forward(self, *without: str):
        return self.loss({name: model for name, model in self.models.items() if name not in without})


def trace(job: Job, config: dict, value_config: dict | None = None) -> dict[str, int]:
    """Part -> bytes at the peak of a training step of `job`, whose model has `config` and whose value model has
    `value_config`, if it has one and not that of the policy; "Total" is the sum.

    Raises:
        InputError: sharded or quantised models, which cannot be traced on this machine.
    """
    if job.quantised or (job.sharded and job.gpus > 1):
        raise InputError("--exact: sharded and quantised models are not traced; leave it out")
    models = {"policy": _build(job, config, job.head == "score")}
    r = job.rollouts
    if job.has_reference and not (r and r.offload):
        frozen = job.changed(lora=None, weight_bytes=r.reference_bytes if r else job.weight_bytes)
        models["reference"] = _build(frozen, config, False).requires_grad_(False)
    if r and r.separate_value:
        models["value"] = _build(job.changed(lora=None, weight_bytes=4), value_config or config, True)
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        for name, stand_in in AS_ON_A_GPU.items():
            stack.enter_context(mock.patch(name, stand_in))
        for model in models.values():
            _make_fake(model)
        optimizer = _optimizer(models, keep_gradients=job.accumulation > 1)
        shape = (1, job.tokens) if job.flattened else (job.batch * job.rows, job.length)
        ids = torch.zeros(shape, dtype=torch.long)
        step = Step(models, _loss(job, ids))
        tracker = Tracker()
        tracker.track_external(step, optimizer, ids)
        with tracker:
            for without in ("value", "policy") if "value" in models else (None,):  # as `PPOTrainer.training_step`: in turn
                with torch.autocast("cpu", torch.bfloat16, enabled=job.autocast):
                    loss = step(without)
                loss.backward()
                tracker.reset_mod_stats()  # of modules, which are called once between resets; the peak stays
            optimizer.step()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return {getattr(part, "value", part): size for part, size in peak.items() if size}


def _build(job: Job, config: dict, score: bool) -> nn.Module:
    """The model on the meta device, with its adapter and activation checkpointing."""
    config = text_model(config)
    run_decides = ("model_type", "parameters", "dtype", "torch_dtype")  # a config's dtype would win over the job's
    sizes = {key: value for key, value in config.items() if key not in run_decides}
    built = AutoConfig.for_model(config["model_type"], **sizes)
    for name, value in vars(built).items():  # dropout masks take one byte per value on a GPU but four on a CPU
        if "pdrop" in name or name.endswith("dropout"):
            setattr(built, name, 0.0 if isinstance(value, (int, float)) else value)
    built.num_labels, built.pad_token_id = 1, 0
    default = torch.get_default_dtype()
    with torch.device("meta"):
        torch.set_default_dtype(torch.float32 if job.weight_bytes == 4 else torch.bfloat16)
        try:
            model = (AutoModelForSequenceClassification if score else AutoModelForCausalLM).from_config(built)
        finally:
            torch.set_default_dtype(default)
        if job.head == "chunked":
            add_fused_lm_head(model)
        if job.checkpointing:
            model.activation_checkpointing_enable()
        if job.lora:
            model = get_peft_model(model, _peft_config(job, score))
            if job.checkpointing:
                model.enable_input_require_grads()
    return model.train()


def _peft_config(job: Job, score: bool) -> LoraConfig:
    names = MODULES.get(job.architecture.family) or {name: [name] for name in job.lora.targets}
    targets = sorted(theirs for theirs, ours in names.items() if set(ours) & job.lora.targets)
    return LoraConfig(r=job.lora.rank, target_modules=targets, task_type="SEQ_CLS" if score else "CAUSAL_LM")


def _make_fake(model: nn.Module) -> None:
    """Turns parameters and buffers into fake CPU tensors, in place; tied weights stay tied."""
    made = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = tensor, nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = made[id(tensor)][1]


def _optimizer(models: dict[str, nn.Module], keep_gradients: bool) -> torch.optim.Optimizer:
    """AdamW with its states allocated, as from the second step on."""
    trained = [parameter for model in models.values() for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    if not keep_gradients:
        optimizer.zero_grad()
    return optimizer


def _loss(job: Job, ids: torch.Tensor):
    """A function from models to the loss of a micro-batch, computed as by the stage's trainer."""
    given = {"input_ids": ids, "use_cache": False}
    if job.padded or job.flattened:
        given["attention_mask"] = torch.ones_like(ids)

    def plain(models):
        return models["policy"](**given, labels=ids).loss

    def tiled(models):
        logprobs = models["policy"](**given, labels=ids, fused_lm_head=True).log_probs
        if "reference" not in models:
            return -logprobs.sum()
        with torch.no_grad():
            reference = models["reference"](**given, labels=ids, fused_lm_head=True).log_probs
        return -(logprobs - reference).sum()

    def scored(models):
        chosen, rejected = models["policy"](**given).logits.squeeze(-1).chunk(2)
        return -nn.functional.logsigmoid(chosen - rejected).mean()

    kinds = {"logits": plain, "chunked": tiled, "score": scored}
    return kinds[job.head] if job.head in kinds else lambda models: _ppo_loss(job.rollouts, models, ids)


def _ppo_loss(r: Rollouts, models, ids: torch.Tensor) -> torch.Tensor:
    """PolicyAndValue's forward with one of the two models, for rows of full length; the original locates responses by tensor
    values, which fakes lack."""
    places = slice(r.prompt - 1, -1)
    if "policy" not in models:
        kept = token_hidden_states(models["value"], ids)[:, places].flatten(0, 1)
        return models["value"].score(kept).float().square().sum()
    policy = causal_lm(models["policy"])
    hidden = token_hidden_states(policy, ids)[:, places].flatten(0, 1)
    targets = ids[:, r.prompt :].flatten()
    size = r.chunk or max(1, LOGITS_BYTES // 4 // policy.config.get_text_config().vocab_size)

    def of_chunk(hidden, targets):
        return _SelectLogprobs.apply(_logits(policy, hidden), targets, r.temperature, False)[0]

    parts = list(zip(hidden.split(size), targets.split(size), strict=True))
    if len(parts) == 1:
        logprobs = of_chunk(*parts[0])
    else:
        logprobs = torch.cat([checkpoint(of_chunk, *p, use_reentrant=False, preserve_rng_state=False) for p in parts])
    return -logprobs.sum()
