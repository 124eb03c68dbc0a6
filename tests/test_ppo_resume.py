"""A run killed at a random moment and started again ends bit-equal; two processes save, resume and train adapters.

PPO_KILL_POINTS=10 pytest tests/test_ppo_resume.py tries more moments.
"""

import os
import random
import signal
import threading
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from forked import run_python
from peft import LoraConfig
from transformers import TrainerCallback

from llmrecipes.checkpoints import step_folders
from llmrecipes.config import RunArguments
from llmrecipes.durable import read_json
from llmrecipes.locks import release_folder
from llmrecipes.resume import run_training
from llmrecipes.run import check_run, start_run

KILL_POINTS = int(os.environ.get("PPO_KILL_POINTS", 3))
FIGURES = ("loss", "grad_norm", "learning_rate", "score", "kl", "entropy", "kl_coef")


class Death(TrainerCallback):
    """Kills its process a moment after a step has begun: while the step or its checkpoint is under way."""

    def __init__(self, step: int, seconds: float):
        self.step, self.seconds = step, seconds

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            threading.Timer(self.seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


def run(folder: Path, resume: str | None = None, death: tuple[int, float] | None = None, **arguments):
    """A run of six rollouts that saves after every step; killed so many seconds after the start of a step, `death`."""
    settings = {
        "max_steps": 24,
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "kl_target": 0.5,
        "kl_horizon": 100,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "data": toys.prompts(20),
        "reward": toys.reward_model(),
    }
    trainer = toys.trainer(folder, **{**settings, **arguments})
    if death is not None:
        trainer.add_callback(Death(*death))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def figures(trainer) -> list[dict]:
    return [
        {name: entry[name] for name in FIGURES if name in entry} for entry in trainer.state.log_history if "loss" in entry
    ]


def assert_same(one, other) -> None:
    assert figures(one) == figures(other) and one.kl_coef == other.kl_coef
    for (name, a), b in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    states = [trainer.optimizer.state_dict()["state"] for trainer in (one, other)]
    for parameter, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][parameter][name])), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.long] * (seed > 0)) for seed in range(KILL_POINTS)])
def test_killed_anywhere_and_started_again_ends_bit_equal(tmp_path, whole, seed):
    chance = random.Random(seed)
    death = chance.randrange(5, 14), chance.uniform(0, 0.2)  # of a step that takes less, with ten more to come
    body = f"from pathlib import Path; import test_ppo_resume as t; t.run(Path({str(tmp_path)!r}), death={death})"
    killed = run_python("-c", body, env={"PYTHONPATH": os.pathsep.join([str(toys.ROOT / "tests"), str(toys.ROOT)])})
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    # Trainer writes trainer_state.json last.
    checkpoint = next((str(f) for f in step_folders(tmp_path) if read_json(f / "trainer_state.json")), None)
    print("killed after", checkpoint)
    assert_same(run(tmp_path, resume=checkpoint), whole)


class Killed(BaseException):
    pass


def test_responses_shown_in_training_are_those_of_an_undisturbed_run(tmp_path):
    """Three steps a checkpoint, two a log line, four a rollout: what a line shows may be older than the checkpoint."""

    def train(folder, killed_at=None):
        trainer = toys.trainer(folder, max_steps=9, save_strategy="steps", save_steps=3, logging_steps=2)
        state = check_run("ppo", RunArguments(), trainer.args, (trainer.args,))
        if killed_at:

            def on_log(args, state, control, **kwargs):
                if state.global_step == killed_at:
                    raise Killed

            kill = TrainerCallback()
            kill.on_log = on_log
            trainer.add_callback(kill)
        start_run(state)
        try:
            run_training(trainer, state)
        except Killed:
            with (folder / "completions" / "train.jsonl").open("a") as file:
                file.write('{"step": 8, "prompt": "hal')
        finally:
            release_folder(folder)
        return (folder / "completions" / "train.jsonl").read_text()

    whole = train(tmp_path / "whole")
    for killed_at in (4, 8):
        train(tmp_path / str(killed_at), killed_at)
        assert train(tmp_path / str(killed_at)) == whole


TWO_RANKS = """
from pathlib import Path
import torch, test_ppo_resume as t
from peft import LoraConfig
folder, kind = Path({folder!r}), {kind!r}
extra = t.KINDS[kind]()
arguments = dict(max_steps=6, per_device_train_batch_size=2, save_steps=3, save_total_limit=None, seed=3, **extra)
whole = t.run(folder, **arguments)
resumed = t.run(folder, resume=str(folder / "checkpoint-3"), **arguments)
t.assert_same(whole, resumed)
parts = [p.detach() for p in whole.model.parameters()]
mine = torch.stack([p.double().sum() for p in parts])
others = whole.accelerator.gather(mine[None])
assert torch.equal(others[0], others[1]), "the processes' weights differ"
assert isinstance(whole.model_wrapped, torch.nn.parallel.DistributedDataParallel)
whole.save_model(str(folder / "final"))
import ppo_toys
ppo_toys.leave()
"""
KINDS = {
    "full": dict,
    "shared": lambda: {"value_model": "shared"},
    "lora": lambda: {"trainer_arguments": {"peft_config": LoraConfig(r=4, target_modules="all-linear")}},
}


# `shared` resumes in two processes under FSDP too (test_ppo_topologies.py).
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind == "shared")) for kind in KINDS])
def test_two_processes_save_resume_and_stay_equal(tmp_path, kind):
    toys.run_two(tmp_path / "two_ranks.py", TWO_RANKS.format(folder=str(tmp_path), kind=kind))
    assert (tmp_path / "final" / ("adapter_model.safetensors" if kind == "lora" else "model.safetensors")).is_file()
