"""Trainer for pretraining: blocks in their mixture's order, Muon, the loss without the logits, attention without a mask."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import add_fused_lm_head  # internal: TRL's own trainers use it, and nothing public is like it

from llmrecipes.attention import BORDERS, ByDocument, needs_no_mask, without_mask
from llmrecipes.data.tables import say
from llmrecipes.muon import build_muon
from llmrecipes.training import add_loss_alone, name_loss


class PretrainTrainer(ByDocument, Trainer):
    """Trainer with MuonAdamW if `muon_learning_rate` is given: under FSDP, Trainer does not accept an optimizer built
    outside.

    Rows with a `mixture` come in its order; each epoch continues where the last one ended, and a resumed run starts at its
    next row without reading those before. With `fused_lm_head` TRL's tiled LM head computes the loss, so that the logits of
    a micro-batch never exist together; the backward pass computes them again.
    """

    def __init__(self, *, model, args: TrainingArguments, muon_learning_rate=None, fused_lm_head=False, **kwargs):
        self.muon_learning_rate = muon_learning_rate
        self._loss_keys = {"fused_lm_head": True} if fused_lm_head else {"loss_alone": True}
        if fused_lm_head and args.device.type == "cpu":  # measured: LOG.md
            say("fused_lm_head: on a CPU, TRL's tiles take more time and memory than the logits do; leave it out")
        self._needs_no_mask = needs_no_mask(model)
        args.remove_unused_columns = False  # there are none, and TokenBlocks returns whole batches
        name_loss(model)
        add_fused_lm_head(model) if fused_lm_head else add_loss_alone(model)
        super().__init__(model=model, args=args, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.muon_learning_rate is not None:
            self.optimizer = build_muon(self.model, self.args, self.muon_learning_rate)
        return super().create_optimizer(model)

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "position_ids" in inputs:  # with a cache they would silently reset nothing
            inputs["use_cache"] = False
            if not self._by_document:  # not every model takes them
                inputs = {name: value for name, value in inputs.items() if name not in BORDERS}
        if self.label_smoother is None:  # it needs the logits
            inputs |= self._loss_keys
        if self._needs_no_mask is None:  # shards
            with self.accelerator.autocast():
                self._needs_no_mask = needs_no_mask(self.model, in_training=True)
        no_mask = self._needs_no_mask and "position_ids" not in inputs
        with without_mask(self.model) if no_mask else nullcontext():
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if getattr(dataset, "mixture", None) is None:
            return super()._get_train_sampler(train_dataset)
        self._order = InOrder(len(dataset))
        return self._order

    def _run_epoch(self, *, epoch: int, steps_trained_in_current_epoch: int, **kwargs) -> None:
        # Overrides a private method of Trainer, which would read and drop all rows before a checkpoint.
        order = getattr(self, "_order", None)
        if order is None:
            return super()._run_epoch(epoch=epoch, steps_trained_in_current_epoch=steps_trained_in_current_epoch, **kwargs)
        is_resumed = epoch == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None
        rows = steps_trained_in_current_epoch * self._train_batch_size * self.args.world_size if is_resumed else 0
        order.epoch, order.skipped = epoch, rows
        module = sys.modules[Trainer.__module__]
        skip_first_batches, module.skip_first_batches = module.skip_first_batches, lambda loader, num_batches: loader
        try:
            return super()._run_epoch(epoch=epoch, steps_trained_in_current_epoch=steps_trained_in_current_epoch, **kwargs)
        finally:
            module.skip_first_batches = skip_first_batches


class InOrder(torch.utils.data.Sampler):
    """Row numbers of an epoch, continuing from one epoch to the next, without the first `skipped`."""

    def __init__(self, epoch_rows: int):
        self.epoch_rows, self.epoch, self.skipped = epoch_rows, 0, 0

    def __len__(self) -> int:
        return self.epoch_rows

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.epoch_rows
        return iter(range(start + self.skipped, start + self.epoch_rows))
