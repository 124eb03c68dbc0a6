"""`auto_find_batch_size` that keeps the run the same: when memory runs out, smaller micro-batches, and more of them a step.

Trainer's own reduces the batch size by a tenth and continues with the weights it had by then: another global batch, another
run. Here rows per optimizer step stay what the config says, and training restarts exactly as it first started.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import Trainer

from llmrecipes.config import InputError
from llmrecipes.memory import is_out_of_memory
from llmrecipes.random_states import random_states, set_random_states

Result = TypeVar("Result")


def train_where_it_fits(trainer: Trainer, train: Callable[[], Result], first_step: int = 0) -> Result:
    """Calls and returns `train()`; with `auto_find_batch_size`, retries with smaller micro-batches as long as memory runs
    out in the first step after `first_step`.

    Raises:
        InputError: memory ran out later than that, in one of several processes, or with one row at a time.
    """
    args = trainer.args
    if not args.auto_find_batch_size:
        return train()
    args.auto_find_batch_size = False
    states = random_states()
    while True:
        try:
            return train()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows, step = args.per_device_train_batch_size, trainer.state.global_step
            fewer = max((n for n in range(1, rows) if rows % n == 0), default=0)
            if not fewer:
                raise InputError("out of memory with one row at a time; lower max_length, or add use_peft: true") from error
            advice = (
                f"per_device_train_batch_size: {fewer} with gradient_accumulation_steps: "
                f"{args.gradient_accumulation_steps * rows // fewer}, the same global batch"
            )
            if args.world_size > 1:
                raise InputError(f"out of memory; auto_find_batch_size works in one process, set {advice}") from error
            if step not in (0, first_step):
                raise InputError(
                    f"out of memory in step {step + 1}; give the same command with {advice}: it continues from the last "
                    "checkpoint"
                ) from error
        print(f"out of memory with {rows} rows at a time; now {advice}", flush=True)
        _shrink(trainer, rows, fewer)
        set_random_states(states)


def _shrink(trainer: Trainer, rows: int, fewer: int) -> None:
    """Switches to micro-batches of `fewer` instead of `rows`, and frees gradients, optimizer and cached memory."""
    args = trainer.args
    args.per_device_train_batch_size = fewer
    args.gradient_accumulation_steps *= rows // fewer
    trainer._train_batch_size = args.train_batch_size  # Trainer read it when it was built
    trainer.model.zero_grad(set_to_none=True)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
