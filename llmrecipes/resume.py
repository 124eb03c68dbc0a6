"""Training that can be interrupted anywhere: complete checkpoints, of this run only, from which it continues exactly.

Trainer's own checkpoints lack the sums since the last log line, have no checksums and pickle the arguments. The callback
here adds the first two and removes the pickle. It reads and sets some private attributes of Trainer, because there is no
public way; all such accesses are in this file.
"""

import json
import re
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors.torch import load_model, save_model
from torch import distributed as dist
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from llmrecipes.batch_size import train_where_it_fits
from llmrecipes.checkpoints import (
    find_damage,
    is_sealed_by,
    not_seen,
    read_seal,
    remove_checkpoint,
    rows_so_far,
    seal_checkpoint,
    step_folders,
)
from llmrecipes.config import InputError
from llmrecipes.measures import BOOKKEEPING
from llmrecipes.models import load_weights, multiply_in_tf32, warn_of_rounding
from llmrecipes.pacing import keep_gpu_busy, stop_where_not_finite
from llmrecipes.random_states import kept_random_states, random_states, set_random_states
from llmrecipes.run import Run
from llmrecipes.sharding import expect_idle_weights
from llmrecipes.signals import Interrupted, handle_signals, keep_workers, raise_interrupted, say_at_once
from llmrecipes.training import require_held_out_batch

# What trainers (Trainer itself, TRL's, PPO's) accumulate between log lines, or count over the whole training.
SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "current_flos", "_metrics", "_total_train_tokens")
SUMS += ("last_rollout_metrics", "rollout_completions", "kl_coef")
SUMS += ("_step", "_buffered_inputs")  # GRPO: micro-batches so far, and the rollout they are taken from
SUMS += ("_logs", "entropy_coef", "_last_world_entropy")  # GRPO: the responses it shows; its entropy controller
PROGRESS = "progress.pt"  # a list with the sums of each process
REFERENCE = "reference.safetensors"  # for a reference model that follows the policy (sync_ref_model)


def run_training(trainer: Trainer, state: Run) -> dict:
    """Trains from the run's checkpoint, if it has one, to the end; returns the metrics of the whole training.

    SIGTERM and Ctrl-C save a checkpoint of the last optimizer step and raise Interrupted: at once in a single process
    without workers; several processes have to agree at the end of the step. A loss or gradient that is not finite raises
    InputError, and no further checkpoint is written. Evaluations change nothing that is learned.
    """
    require_held_out_batch(trainer)
    keeper = CheckpointKeeper(trainer, state)
    trainer.add_callback(keeper)
    _pickle_no_arguments(trainer)
    not_finite = stop_where_not_finite(trainer)
    keep_gpu_busy(trainer, state.manifest["given"])
    if not trainer.is_deepspeed_enabled:  # DeepSpeed keeps float32 weights of its own
        warn_of_rounding(trainer.model)
    multiply_in_tf32(trainer.args)
    expect_idle_weights(trainer.args, trainer.model)
    args, checkpoint = trainer.args, state.resume_from_checkpoint
    # Trainer would remove old checkpoints before the newest is sealed; here they are kept until then.
    limit, args.save_total_limit = args.save_total_limit, None
    _load_what_was_saved(trainer)
    keep_workers(trainer)
    # Evaluations draw responses (GRPO) and seeds of loaders; training draws its dropout and responses from the same numbers.
    trainer.evaluate = kept_random_states()(trainer.evaluate)
    if checkpoint:
        _require_equal_steps(trainer, Path(checkpoint))
        args.eval_on_start = False  # done before the interruption
        _check_best_model(trainer, checkpoint)
        if keeper.is_at_end:
            trainer._run_epoch = lambda **kwargs: None  # Trainer would take another step
    handle_signals(keeper.on_signal)
    try:
        train = lambda: trainer.train(resume_from_checkpoint=checkpoint)
        metrics = train_where_it_fits(trainer, train, keeper.first_step).metrics
        not_finite.check()
    except Interrupted:
        keeper.save_now()
        raise
    except KeyError as error:
        raise _unmeasured(error, args.metric_for_best_model) or error from None
    finally:
        handle_signals()
        args.save_total_limit = limit
    if keeper.signum:
        raise Interrupted(keeper.signum)
    return keeper.over_the_whole_training(metrics)


class CheckpointKeeper(TrainerCallback):
    """Completes and seals each checkpoint, removes those beyond `save_total_limit`, and saves when a signal arrives."""

    def __init__(self, trainer: Trainer, run: Run):
        self.trainer, self.run, self.limit = trainer, run, trainer.args.save_total_limit
        self.signum = 0
        self.may_leave = False  # whether the model is in the state of the last step, unchanged
        # Others would wait, a worker would be cut off while it hands over, and DeepSpeed counts a step's micro-batches.
        is_alone = trainer.args.world_size == 1 and not trainer.args.dataloader_num_workers
        self.leaves_at_once = is_alone and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
        self.first_step, self.is_at_end, self.seconds_before = 0, False, 0.0
        self.sees_all = True  # what other processes write
        if run.resume_from_checkpoint:
            checkpoint = Path(run.resume_from_checkpoint)
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            self.first_step, self.is_at_end = state["global_step"], state["global_step"] >= state["max_steps"]
            self.seconds_before = read_seal(checkpoint)["train_seconds"]
        self.started = time.monotonic()
        self.reference = _moving_reference(trainer)
        self.at_step: dict = {}  # what a checkpoint of the last finished step needs and the next step changes
        self._get_batch_samples = trainer.get_batch_samples
        trainer.get_batch_samples = self.get_batch_samples

    # ---- Continuing ----

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, checkpoint = self.trainer, self.run.resume_from_checkpoint
        self.is_first_epoch = True
        if args.max_steps <= 0 and (warmup := args.get_warmup_steps(state.max_steps)) >= state.max_steps > 0:
            self._warn(f"warmup_steps: {warmup}, but the run has {state.max_steps} steps: `learning_rate` is never reached")
        if checkpoint:
            # train_loss is the mean over all steps, not over those since the checkpoint.
            trainer._initial_global_step = 0
            for name, value in _load_progress(Path(checkpoint), args).items():
                setattr(trainer, name, _restored(getattr(trainer, name), value))
            if self.reference is not None:
                load_model(self.reference, Path(checkpoint) / REFERENCE, device=str(args.device))
            state.compute_steps(args, state.max_steps)  # not the checkpoint's save_steps, logging_steps, ...
            if state.best_global_step:  # the folder may have been moved
                best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
                state.best_model_checkpoint = str(best) if best.is_dir() else None
            # Trainer would load them only after drawing the first batch.
            now = random_states()
            trainer._load_rng_state(checkpoint)
            self.rng = random_states()
            if not self.is_at_end:
                set_random_states(now)
        else:
            self.rng = random_states()

    def _warn(self, text: str) -> None:
        if self.trainer.is_world_process_zero():
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.is_first_epoch and self.run.resume_from_checkpoint:
            # Trainer sets the epoch on a loader that skips batches, but with several processes it does not reach the
            # sampler.
            if hasattr(train_dataloader, "set_epoch"):
                train_dataloader.set_epoch(int(state.epoch))
        else:
            # The data loader draws a seed when it starts; a run that continues from the start of an epoch must draw the same
            # one.
            self.rng = random_states()
        self.is_first_epoch, self.is_first_batch = False, True

    # ---- Leaving ----

    def on_signal(self, signum: int) -> None:
        insists, self.signum = bool(self.signum), signum  # a second signal ends the run at once
        if not insists and self.trainer.is_world_process_zero():
            name = signal.Signals(signum).name
            say_at_once(f"{self.run.stage}: {name} received; saving a checkpoint, then exiting")
        if insists or self.may_leave and self.leaves_at_once:
            self.may_leave = False
            raise_interrupted(self.signum)

    def get_batch_samples(self, *args, **kwargs):
        """Wraps the fetching of a step's batches: between steps, records the state needed to write a checkpoint at any
        time."""
        if not self.is_first_batch:
            self.rng = random_states()
        self.is_first_batch = False
        self.at_step = {name: _copied(getattr(self.trainer, name)) for name in SUMS if hasattr(self.trainer, name)}
        self.at_step |= {"rng": self.rng, "total_flos": self.trainer.state.total_flos}
        self.at_step["tokens"] = self.trainer.state.num_input_tokens_seen
        if self._any_process(self.signum):
            raise_interrupted(self.signum or signal.SIGTERM)
        self.may_leave = True
        return self._get_batch_samples(*args, **kwargs)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.may_leave = False

    def on_step_end(self, args, state, control, **kwargs):
        # No further step in which to exit.
        if self.signum and args.world_size == 1 and state.global_step >= state.max_steps:
            control.should_save = True

    def _any_process(self, signum: int) -> bool:
        if self.trainer.args.world_size == 1:
            return bool(signum)
        flag = torch.tensor(float(bool(signum)), device=self.trainer.args.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def save_now(self) -> None:
        """Writes a checkpoint of the last finished step."""
        trainer, state, kept = self.trainer, self.trainer.state, dict(self.at_step)
        self.may_leave = False
        folder = Path(trainer.args.output_dir) / f"checkpoint-{state.global_step}"
        if not kept or state.global_step <= self.first_step or is_sealed_by(folder, self.run.manifest["fingerprint"]):
            return
        set_random_states(kept.pop("rng"))
        state.total_flos, state.num_input_tokens_seen = kept.pop("total_flos"), kept.pop("tokens")
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, state, trainer.control)

    # ---- Saving ----

    def on_save(self, args, state, control, **kwargs):
        trainer, manifest = self.trainer, self.run.manifest
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        progress = gather_object([_plain({name: getattr(trainer, name) for name in SUMS if hasattr(trainer, name)})])
        trainer.accelerator.wait_for_everyone()  # all processes have written their files
        if trainer.is_world_process_zero():
            if self.sees_all and not args.save_only_model and (wrong := not_seen(folder, args.world_size)):
                self._warn(wrong)
                self.sees_all = False
            torch.save(progress, folder / PROGRESS)
            if self.reference is not None:
                save_model(self.reference, str(folder / REFERENCE))
            facts = {"step": state.global_step, "launch": manifest["launch"], "cut_up": _cut_up(args)}
            facts["rows"] = rows_so_far(folder.parent, state.global_step)
            facts["seconds"] = round(self.run.seconds(), 1)
            facts["train_seconds"] = round(self.seconds_before + time.monotonic() - self.started, 1)
            seal_checkpoint(folder, manifest["fingerprint"], **facts)
            self._remove_old(folder, state.best_model_checkpoint)

    def _remove_old(self, newest: Path, best: str | None) -> None:
        own = [f for f in step_folders(newest.parent) if is_sealed_by(f, self.run.manifest["fingerprint"])]
        kept = {newest.name, Path(best).name if best else newest.name}
        others = [folder for folder in own if folder.name not in kept]
        if self.limit:
            for folder in others[max(self.limit - len(kept), 0) :]:
                remove_checkpoint(folder)

    def over_the_whole_training(self, metrics: dict) -> dict:
        """`metrics`, including the time spent before the checkpoint."""
        if not self.seconds_before:
            return metrics
        seconds = metrics["train_runtime"]
        metrics["train_runtime"] = round(seconds + self.seconds_before, 4)
        for name in ("train_samples_per_second", "train_steps_per_second"):
            if name in metrics:
                metrics[name] = round(metrics[name] * seconds / metrics["train_runtime"], 3)
        self.trainer.state.log_history[-1].update(metrics)
        return metrics


def _pickle_no_arguments(trainer: Trainer) -> None:
    """Removes the arguments that Trainer pickles next to each model: the manifest has them, without secrets."""
    save_model = trainer.save_model

    def save(output_dir: str | None = None, *args, **kwargs) -> None:
        save_model(output_dir, *args, **kwargs)
        Path(output_dir or trainer.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    trainer.save_model = save


def _cut_up(args: TrainingArguments) -> list[int]:
    """How the rows of an optimizer step are split: rows per micro-batch, micro-batches, processes."""
    return [args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size]


def _require_equal_steps(trainer: Trainer, checkpoint: Path) -> None:
    """InputError if splitting a step's rows differently than before the checkpoint would change which rows it has, or the
    loss on them."""
    args, before = trainer.args, read_seal(checkpoint)["cut_up"]
    if before == _cut_up(args):
        return
    then = "per_device_train_batch_size {}, gradient_accumulation_steps {} and {} processes".format(*before)
    rows, batch = len(trainer.train_dataset), before[0] * before[1] * before[2]
    if hasattr(trainer, "_buffered_inputs"):
        raise InputError(f"{checkpoint}: holds a rollout that is split into {then}; use these again")
    if getattr(trainer, "calculate_KL", False):
        raise InputError(f"{checkpoint}: KTO measures KL on the rows of a micro-batch, split into {then}; use these again")
    if rows % batch:
        raise InputError(
            f"{checkpoint}: {rows} rows are not a multiple of the {batch} of a step, so the last step of an epoch would "
            f"have other rows when split differently; use {then}, as before"
        )
    if getattr(args, "train_sampling_strategy", "random") == "group_by_length":
        raise InputError(f"{checkpoint}: train_sampling_strategy: group_by_length orders rows by {then}; use these again")
    if trainer.is_world_process_zero():
        print(f"{checkpoint}: the rows of a step were split into {then}; what follows is equal up to rounding", flush=True)


def _load_progress(checkpoint: Path, args: TrainingArguments) -> dict:
    """This process's sums; if the number of processes has changed, the sums over all of them."""
    device = "cpu" if args.device.type == "cpu" else args.device  # torch.load does not accept cpu:0
    parts = torch.load(checkpoint / PROGRESS, map_location=device, weights_only=True)
    if len(parts) == args.world_size:
        return parts[args.process_index]
    # Log lines show means over processes; everything else has been gathered already.
    return parts[0] | {"_tr_loss": torch.stack([part["_tr_loss"] for part in parts]).mean(0)}


def _load_what_was_saved(trainer: Trainer) -> None:
    """Has `trainer` load its checkpoints by `load_weights`. Trainer itself looks for the model's own names and leaves what
    is saved under others as it was at the start, with no more than a warning. Adapters stay of the precision they have:
    peft would make those that TRL trains in bfloat16 (QLoRA) float32."""
    model = trainer.model
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    if isinstance(model, PeftModel):
        trainer._load_from_checkpoint = _with_dtypes_kept(model, trainer._load_from_checkpoint)
        trainer._load_best_model = _with_dtypes_kept(model, trainer._load_best_model)
    elif isinstance(model, PreTrainedModel):
        trainer._load_from_checkpoint = lambda checkpoint, _=None: load_weights(checkpoint, model)
        trainer._load_best_model = lambda: load_weights(trainer.state.best_model_checkpoint, model)


def _with_dtypes_kept(model: torch.nn.Module, load: Callable) -> Callable:
    def load_and_cast(*args, **kwargs):
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        load(*args, **kwargs)
        for name, parameter in model.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    return load_and_cast


def _check_best_model(trainer: Trainer, checkpoint: str) -> None:
    """InputError if the best model, which is to be loaded at the end, is missing or damaged."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    if trainer.args.load_best_model_at_end and state.get("best_global_step"):
        best = Path(trainer.args.output_dir) / f"checkpoint-{state['best_global_step']}"
        wrong = find_damage(best) if best.is_dir() else "is gone"
        if wrong:
            raise InputError(f"{best}: {wrong}, and load_best_model_at_end needs it; --force starts over")


def _unmeasured(error: KeyError, metric: str | None) -> InputError | None:
    """What Trainer's KeyError at the first evaluation means, if it is about the metric that decides on the best model."""
    found = re.search(r"`metric_for_best_model` .* available evaluation metrics are: \[(.*?)\]", str(error))
    if not found:
        return None
    measured = [name for name in re.findall(r"eval_[^'\"\\]+", found[1]) if not BOOKKEEPING.search(name)]
    return InputError(f"metric_for_best_model: {metric} is not measured; choose from {', '.join(measured)}")


def _moving_reference(trainer: Trainer) -> torch.nn.Module | None:
    """The reference model, if it changes while the policy is trained (TR-DPO, arXiv 2404.09656)."""
    if not getattr(trainer.args, "sync_ref_model", False):
        return None
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise InputError("sync_ref_model: with FSDP or DeepSpeed, checkpoints cannot hold the reference; train without them")
    return trainer.accelerator.unwrap_model(trainer.ref_model)


def _copied(value):
    """A deep copy of `value`'s containers and tensors."""
    if isinstance(value, dict):
        copy = value.copy()  # keeps a defaultdict a defaultdict
        copy.update({k: _copied(v) for k, v in value.items()})
        return copy
    if isinstance(value, list):
        return [_copied(v) for v in value]
    if isinstance(value, deque):
        return deque(map(_copied, value), value.maxlen)
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _plain(value):
    """`value` in a form that torch.load reads with weights_only: no subclasses, tensors on the CPU."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return value.item() if isinstance(value, np.generic) else value


def _restored(current, saved):
    """`saved` with the types and devices of `current`."""
    if isinstance(current, dict):
        for key, value in saved.items():
            is_there = key in current or isinstance(current, defaultdict)
            current[key] = _restored(current[key], value) if is_there else value
        return current
    return deque(saved, current.maxlen) if isinstance(current, deque) else saved
