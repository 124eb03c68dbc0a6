"""GRPO reads rewards and prompts as PPO does, and continues exactly, also from the middle of a rollout."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import ppo_toys as toys
import pytest
import torch
import trl
from datasets import Dataset
from forked import run_python
from test_resume import At, Killed, assert_same, kill

from llmrecipes.config import InputError, RunArguments
from llmrecipes.grpo import GRPOTrainer
from llmrecipes.keys import keys_of
from llmrecipes.keys.settings import Settings
from llmrecipes.locks import release_folder
from llmrecipes.parsing import require_gpu
from llmrecipes.resume import run_training
from llmrecipes.reward_models.scoring import read_scores, reward_model_tokens
from llmrecipes.run import check_run, start_run
from llmrecipes.signals import Interrupted, received

ROOT = Path(__file__).parent.parent
PROMPTS = [{"prompt": f"w{i} w{i + 1}", "number": i} for i in range(10)]


def build(folder, rows=None, reward=toys.even_share, held_out=None, **changes):
    settings = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 4, "num_generations": 4, "steps_per_generation": 2, "num_iterations": 2}
    settings |= {"max_completion_length": 8, "max_steps": 9, "save_steps": 1, "logging_steps": 2, "learning_rate": 5e-3}
    settings |= {"lr_scheduler_type": "constant", "save_total_limit": 2, "activation_checkpointing": False, "seed": 3}
    args = trl.GRPOConfig(**(settings | changes))
    return GRPOTrainer(
        model=toys.policy(),
        ref_model=toys.policy() if args.beta else None,
        args=args,
        train_dataset=Dataset.from_list(rows or PROMPTS),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=toys.tokenizer(),
        reward_funcs=reward if isinstance(reward, list) else [reward],
    )


def train(folder, *callbacks, **changes):
    trainer = build(folder, **changes)
    for callback in callbacks:
        trainer.add_callback(callback)
    state = check_run("grpo", RunArguments(), trainer.args, (trainer.args,))
    start_run(state)
    try:
        metrics = run_training(trainer, state)
    finally:
        release_folder(state.output_dir)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        received.clear()
    return trainer, {name: value for name, value in metrics.items() if name != "total_flos"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "o")


# A rollout lasts four steps: the run is killed at the end of one, and inside one.
def test_a_reward_that_is_the_same_for_all_responses_is_said_once(tmp_path, capsys):
    def solved(completions, **_):
        return [1.0] * len(completions)

    train(tmp_path, reward=solved, num_iterations=1, max_steps=10, save_steps=10)
    assert capsys.readouterr().out.count("reward function solved: every response of the first 4 rollouts got 1,") == 1


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.long), 6])
def test_killed_and_started_again_ends_equal(tmp_path, whole, step):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_begin", step, kill))
    assert_same(train(tmp_path / "o"), whole)


def test_entropy_control_moving_reference_and_shown_responses_continue(tmp_path):
    more = {"log_completions": True, "use_adaptive_entropy": True, "entropy_coef_delta": 0.1, "entropy_target": 9.0}
    more |= {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "save_steps": 4}
    whole = train(tmp_path / "whole", **more)
    with pytest.raises(Interrupted):  # the controller has moved, the step has not been taken
        train(tmp_path / "o", At("on_pre_optimizer_step", 5, lambda: os.kill(os.getpid(), signal.SIGTERM)), **more)
    assert_same(train(tmp_path / "o", **more), whole)
    shown = [sorted((tmp_path / name / "completions").iterdir()) for name in ("whole", "o")]
    for one, other in zip(*shown, strict=True):
        assert one.name == other.name and pd.read_parquet(one).equals(pd.read_parquet(other)), one.name


def test_later_passes_continue_in_their_own_order(tmp_path):
    few = {"rows": PROMPTS[:4], "num_iterations": 1, "max_steps": 7}  # two rollouts, four steps a pass
    whole = train(tmp_path / "whole", **few)
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_begin", 5, kill), **few)
    assert_same(train(tmp_path / "o", **few), whole)


def test_rollout_cut_up_otherwise_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_begin", 3, kill))
    monkeypatch.setattr("llmrecipes.resume._cut_up", lambda args: [2, 1, 2])
    with pytest.raises(InputError, match="holds a rollout that is split into per_device_train_batch_size 4"):
        train(tmp_path / "o")


def test_evaluating_changes_nothing_that_is_learned(tmp_path, whole):
    # In the middle of a rollout, at its end, and before the first.
    more = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "per_device_eval_batch_size": 4}
    trainer, _ = train(tmp_path / "o", held_out=PROMPTS[:3], **more)
    history = trainer.state.log_history
    trainer.state.log_history = [logs for logs in history if "eval_reward" not in logs]
    assert len(history) - len(trainer.state.log_history) == 6  # before the first step, and at 2, 4, 6, 8 and 9
    trainer.state.log_history[-1] |= {k: v for k, v in whole[0].state.log_history[-1].items() if k not in history[-1]}
    assert_same((trainer, {}), (whole[0], {}))


def test_data_seed_gives_the_order_of_the_prompts_and_nothing_else(tmp_path):
    orders = [list(build(tmp_path / "o", **seeds)._get_train_sampler()) for seeds in ({}, {"data_seed": 7}, {"seed": 7})]
    assert orders[0] != orders[1] == orders[2] and sorted(orders[0]) == sorted(orders[1])


def test_responses_are_counted_as_they_were_sampled(whole):
    assert whole[0].num_episodes == 24  # three rollouts of 8 in 9 steps, of which a rollout lasts 4
    whole[0].args.gradient_accumulation_steps = 2
    assert whole[0].num_episodes == 40
    whole[0].args.gradient_accumulation_steps = 1


def test_kl_is_measured_against_the_reference_that_is_given(tmp_path):
    # The policy lies in no folder, as one that adapters were merged into: nothing could be read by its path.
    trainer = build(tmp_path / "o", beta=0.1, logging_steps=1, max_steps=1, num_iterations=1)
    assert trainer.ref_model is not None and trainer.model.config._name_or_path == ""
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_reward_rises(tmp_path):
    trainer, _ = train(tmp_path / "o", num_iterations=1, max_steps=30, learning_rate=1e-2, save_steps=100)
    rewards = [logs["reward"] for logs in trainer.state.log_history if "reward" in logs]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.15
    assert trainer.last_metrics()["reward"] == rewards[-1]


@pytest.mark.parametrize("chat", [False, True])
def test_reward_model_reads_a_response_as_every_other_reader_does(tmp_path, chat):
    model, tokenizer = toys.reward_model(), toys.tokenizer()
    prompt = [{"role": "user", "content": "w5 w6"}] if chat else "w5 w6"
    trainer = build(tmp_path, [{"prompt": prompt}] * 8, model)
    given = {"trainer_state": None, "log_metric": None, "log_extra": None}
    ends = [[8, 9, toys.EOS], [8, 9, 10]]  # finished, cut
    got = trainer.reward_funcs[0]([prompt] * 2, [None] * 2, ends, **given)
    texts = ["w4 w5", "w4 w5 w6"] if chat else [" w4 w5", " w4 w5 w6"]
    rows = [reward_model_tokens(tokenizer, prompt, text, i == 0) for i, text in enumerate(texts)]
    torch.testing.assert_close(torch.tensor(got), read_scores(model, rows, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PROMPTS[:1], "1 are fewer than the 2 of one rollout"),
        ([{"prompt": "w5", "tools": "[]"}] * 8, "has a column `tools`"),
        ([{"prompt": "w5 " * 90}] * 8, "all prompts are longer than 56 tokens"),
        ([{"prompt": "w5", "completion_ids": 1}] * 8, "column `completion_ids`"),
    ],
)
def test_prompts_that_cannot_be_trained_on_are_one_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, rows)
    assert "PPO" not in str(caught.value).replace("recipes/ppo.py", "")


def test_reward_function_that_returns_too_few_is_one_line(tmp_path):
    trainer = build(tmp_path, reward=lambda completion_ids, **_: [0.0])
    with pytest.raises(InputError, match="returned 1 scores for 8 responses"):
        trainer.train()


def test_a_response_that_no_reward_function_scores_is_one_line(tmp_path):
    def even(prompts, completion_ids, number):
        return [None if n % 2 else 1.0 for n in number]

    def odd(prompts, completion_ids, number):
        return [float(len(ids)) if n % 2 else None for ids, n in zip(completion_ids, number, strict=True)]

    with pytest.raises(InputError, match=r"reward function even: row \d got None, and no other function .*\(prompt 'w"):
        build(tmp_path, reward=[even]).train()
    trainer = build(tmp_path, reward=[even, odd], max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(("given", "told"), [({}, "bf16"), ({"fp16": True}, "fp16"), ({"bf16": False}, None)])
def test_continuous_batching_may_not_round_the_weights_that_are_trained(monkeypatch, given, told):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    key = "use_transformers_continuous_batching"
    settings = Settings(given | {key: True}, {key: "c.yaml:1"}, keys_of("trl.trainer.grpo_config:GRPOConfig"))
    if told is None:
        require_gpu(settings)
    else:
        with pytest.raises(InputError, match=f"c.yaml:1: `{key}` rounds the weights .* set `{told}: false`"):
            require_gpu(settings)


def test_the_evaluation_after_training_stands_in_trackios_run(tmp_path):
    toys.policy().save_pretrained(tmp_path / "base")
    toys.tokenizer().save_pretrained(tmp_path / "base")
    rows = "".join(json.dumps(row) + "\n" for row in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(rows)
    options = {
        "model_name_or_path": tmp_path / "base",
        "datasets": tmp_path / "prompts.jsonl",
        "test_split_size": 2,
        "output_dir": tmp_path / "grpo",
        "reward_functions": "ppo_toys:even_share",
        "max_completion_length": 4,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "trackio",
        "project": "toy",
    }
    argv = [word for key, value in options.items() for word in (f"--{key}", value)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = run_python("recipes/grpo.py", *argv, env={"PYTHONPATH": paths, "TRACKIO_DIR": None})
    assert done.returncode == 0, done.stderr[-3000:]
    with closing(sqlite3.connect(tmp_path / "trackio" / "toy.db")) as database:
        names = {name for (name,) in database.execute("SELECT run_name FROM metrics")}
        logs = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics")]
    assert names == {"grpo"} and any("eval/reward" in log for log in logs)
