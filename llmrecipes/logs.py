"""What a run prints: libraries are quiet, and training prints one line per log."""

import logging
import time
import warnings

import datasets
import transformers
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from llmrecipes.measures import TRAINING


def quiet_logs() -> None:
    """Silences library warnings that a user cannot act on; progress bars stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|trl|accelerate")
    # At each save of an adapter whose base is one too, or from the package index: PEFT's assumption is right, the base
    # vocabulary was not extended, for no stage with adapters adds tokens.
    warnings.filterwarnings("ignore", message="Could not find a config file in ")
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    for name in ("httpx", "filelock", "fsspec", "absl", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


class ReadableLog(TrainerCallback):
    """One line per log (step, metrics, speed and ETA) instead of Trainer's raw dictionaries."""

    SHOWN = tuple(name for measure, about in TRAINING.items() if about.shown for name in (measure, f"eval_{measure}"))

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = [(name, logs[name]) for name in self.SHOWN if isinstance((logs or {}).get(name), (int, float))]
        if not state.is_world_process_zero or not shown:
            return
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.started) / max(done, 1) * (state.max_steps - state.global_step)
        eta = f"  ETA {int(left) // 60}:{int(left) % 60:02d}" if done else ""
        values = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in shown)
        print(f"  step {state.global_step}/{state.max_steps}  {values}{eta}", flush=True)


def use_readable_log(trainer: Trainer) -> Trainer:
    """`trainer` with its progress printed by ReadableLog instead of Trainer's bar and printer."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ReadableLog())
    return trainer
