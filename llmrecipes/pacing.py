"""Training steps that keep a GPU busy: while it computes one, the next one's kernels are already waiting in its queue.

Whatever reads a number back from the GPU makes Python wait until the queue is empty; the GPU then idles until the next
kernels arrive.
"""

import gc

import torch
from transformers import Trainer, TrainerCallback

from llmrecipes.config import InputError


def keep_gpu_busy(trainer: Trainer, given: dict) -> None:
    """On a GPU: copies batches without waiting, unless the keys `given` by the user say how; freezes the garbage collector;
    leaves out Trainer's own search for NaN, which `stop_where_not_finite` does without waiting."""
    args = trainer.args
    if args.device.type != "cuda":
        return
    if args.dataloader_pin_memory and "accelerator_config" not in given:
        trainer.accelerator.dataloader_config.non_blocking = True
    if not args.fp16:
        args.logging_nan_inf_filter = False
    trainer.add_callback(FrozenObjects())


class FrozenObjects(TrainerCallback):
    """Spares the garbage collector the objects that are there after the first step (models, optimizer, compiled code): its
    full passes over them take tenths of a second."""

    def __init__(self):
        self.is_frozen = False

    def on_step_end(self, args, state, control, **kwargs):
        if not self.is_frozen:
            gc.collect()
            gc.freeze()
            self.is_frozen = True

    def on_train_end(self, args, state, control, **kwargs):
        gc.unfreeze()


# Methods of Trainer, and of TRL's GRPOTrainer, that a weight that is not finite must not reach.
READERS_OF_WEIGHTS = ("save_model", "evaluate", "_generate_and_score_completions")


def stop_where_not_finite(trainer: Trainer) -> "NotFinite":
    """Ends training with InputError when a loss or gradient is NaN or infinite, before it reaches the weights; on a GPU a
    step later, but before anything is evaluated, saved or drawn from the model (GRPO's rollouts), which waits for the GPU
    anyway. What else looks at the weights calls `trainer.require_finite()` first; the caller asks `check()` at the end."""
    training_step, get_grad_norm = trainer.training_step, trainer._get_grad_norm
    found = NotFinite(trainer)
    in_fp16 = trainer.accelerator.mixed_precision == "fp16"

    def checked_step(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        # With several processes it shows in the gradient, in all at once; on a GPU too, without a wait in each micro-batch.
        # Not in fp16, whose scaler would skip all further steps in silence.
        if in_fp16 or trainer.args.world_size == 1 and not found.is_late:
            found.note("loss", loss)
        return loss

    def checked_norm(*args, **kwargs):
        norm = get_grad_norm(*args, **kwargs)
        if norm is not None and not in_fp16:  # fp16 skips such a step by itself
            found.note("gradient", norm)
        return norm

    def checked_first(function):
        def checked(*args, **kwargs):
            found.check()
            return function(*args, **kwargs)

        return checked

    trainer.training_step, trainer._get_grad_norm = checked_step, checked_norm
    for name in READERS_OF_WEIGHTS:
        if hasattr(trainer, name):
            setattr(trainer, name, checked_first(getattr(trainer, name)))
    trainer.require_finite = found.check
    return found


class NotFinite:
    """Losses and gradients that were NaN or infinite. is_late: they are asked for when the next is noted, by which time the
    GPU has long computed them."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.noted = trainer, None
        self.is_late = trainer.args.device.type == "cuda" and trainer.accelerator.mixed_precision != "fp16"

    def note(self, what: str, value) -> None:
        self.check()
        value = torch.as_tensor(value.full_tensor() if hasattr(value, "full_tensor") else value)
        finite = torch.isfinite(value).all().to("cpu", non_blocking=self.is_late)
        copied = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None
        self.noted = what, self.trainer.state.global_step, finite, copied
        if not self.is_late:
            self.check()

    def check(self) -> None:
        """Raises InputError if the value noted last is not finite."""
        if self.noted is None:
            return
        (what, step, finite, copied), self.noted = self.noted, None
        if copied is not None:
            copied.synchronize()
        if not finite:
            raise InputError(
                f"step {step}: the {what} is not finite; the last checkpoint in {self.trainer.args.output_dir}, if there is "
                "one, is kept. Lower learning_rate, or look for unusual rows in this step"
            )
