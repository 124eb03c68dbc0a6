"""PPOTrainer: what TrainingArguments promises holds, the gradient does not depend on how a batch is cut, and both
toys."""

import json

import ppo_toys as toys
import pytest
import torch
from datasets import Dataset
from ppo_toys import assert_equal_weights, logged, scripted_sampler, weights
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import EarlyStoppingCallback, TrainerCallback

from llmrecipes.config import InputError
from llmrecipes.ppo import policy_value
from llmrecipes.ppo.losses import response_mask
from llmrecipes.tokenizers import train_tokenizer

# ---- Steps, ratio, KL ----


def test_each_rollout_gives_epochs_times_minibatches_optimizer_steps(tmp_path):
    steps = []

    class CountSteps(TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            steps.append(1)

    # 20 prompts: two rollouts of 8 in each pass, the rest waits; the last rollout is trained in full too.
    trainer = toys.trainer(
        tmp_path,
        data=toys.prompts(20),
        max_steps=-1,
        num_train_epochs=2,
        num_ppo_epochs=3,
        num_mini_batches=2,
        gradient_accumulation_steps=1,
        trainer_arguments={"callbacks": [CountSteps()]},
    )
    trainer.train()
    assert len(steps) == trainer.state.global_step == 2 * 2 * 3 * 2
    assert logged(trainer, "num_episodes")[-1] == trainer.num_episodes == 2 * 2 * 8


def test_first_ratio_is_exactly_one_and_later_ones_are_not(tmp_path):
    trainer = toys.trainer(tmp_path, num_mini_batches=2, num_ppo_epochs=2, max_steps=8)
    trainer.train()
    ratios, kls = logged(trainer, "ratio"), logged(trainer, "approx_kl")
    assert [ratios[0], ratios[4]] == [1.0, 1.0] and [kls[0], kls[4]] == [0.0, 0.0]
    assert all(kl > 0 for step, kl in enumerate(kls) if step % 4)


@pytest.mark.parametrize("value_model", ["separate", "shared"])
def test_the_samplers_logprobs_stand_in_for_a_forward_pass_of_the_policy(tmp_path, monkeypatch, value_model):
    forwards = []
    compute = policy_value._logprobs
    monkeypatch.setattr(policy_value, "_logprobs", lambda *args: forwards.append(torch.is_grad_enabled()) or compute(*args))
    runs = {}
    for source in ("recompute", "sampler"):
        forwards.clear()
        trainer = toys.trainer(tmp_path, old_logprobs=source, value_model=value_model, max_steps=2, temperature=0.8)
        trainer.train()
        runs[source] = trainer, forwards.count(False)
    (recomputed, passes), (taken, fewer) = runs["recompute"], runs["sampler"]
    assert fewer == passes / 2  # the reference's alone: two micro-batches
    assert torch.allclose(taken._rollout.logprobs, recomputed._rollout.logprobs, atol=1e-5)
    assert torch.equal(taken._rollout.values, recomputed._rollout.values)
    assert logged(taken, "ratio")[0] == pytest.approx(1.0, abs=2e-5)
    sampled = response_mask(taken._rollout.response_lengths)
    estimate = -taken._rollout.logprobs.sum(1) / sampled.sum(1)
    assert logged(taken, "entropy")[0] == pytest.approx(estimate.mean().item(), abs=1e-6)


def test_learning_rate_zero_leaves_kl_at_zero_whatever_the_generation_config_says(tmp_path):
    model = toys.policy()
    model.generation_config.repetition_penalty = 5.0
    trainer = toys.trainer(tmp_path, model=model, learning_rate=0.0, max_steps=6)
    trainer.train()
    assert logged(trainer, "kl") == [0.0] * 3
    assert all(abs(ratio - 1) < 2e-5 for ratio in logged(trainer, "ratio"))


def test_total_episodes_sets_the_number_of_steps(tmp_path):
    trainer = toys.trainer(tmp_path, total_episodes=17, max_steps=-1)
    trainer.train()
    assert trainer.state.global_step == 3 * 2 and trainer.num_episodes == 24


# ---- Gradients ----


def one_step(tmp_path, **arguments) -> dict[str, torch.Tensor]:
    settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "shuffle_dataset": False}
    trainer = toys.trainer(tmp_path, data=toys.prompts(8), **{**settings, **arguments})
    trainer.sampler = scripted_sampler
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (1, 8)])
def test_gradient_does_not_depend_on_the_micro_batches(tmp_path, size, accumulation):
    whole = one_step(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    cut = one_step(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], atol=2e-6, rtol=1e-4)


TWO_RANKS = """
from pathlib import Path
import torch, test_ppo_trainer as tests
for name, extra in tests.DDP.items():
    batch = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    weights = tests.one_step(Path({folder!r}), **(batch | extra))
    if torch.distributed.get_rank() == 0:
        torch.save(weights, {folder!r} + f"/{{name}}.pt")
import ppo_toys
ppo_toys.leave()
"""


DDP = {"default": {}, "find_unused": {"ddp_find_unused_parameters": True}}
DDP["static"] = {"ddp_static_graph": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


def test_gradient_of_two_processes_equals_that_of_one(tmp_path):
    toys.run_two(tmp_path / "two_ranks.py", TWO_RANKS.format(folder=str(tmp_path)))
    one = one_step(tmp_path / "one")
    for kind in DDP:
        two = torch.load(tmp_path / f"{kind}.pt")
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=f"{kind}: {name}")


def test_the_policys_loss_is_logged_without_the_value_models(tmp_path):
    """Where one call computes both: with a shared trunk, FSDP, DeepSpeed and two of DDP's ways."""
    one, both = (toys.trainer(tmp_path, max_steps=1, **way) for way in ({}, {"ddp_static_graph": True}))
    for trainer in (one, both):
        trainer.sampler = scripted_sampler
        trainer.train()
    assert logged(both, "policy_loss") == pytest.approx(logged(one, "policy_loss"), abs=1e-6)
    assert logged(both, "loss")[0] != pytest.approx(logged(both, "policy_loss")[0], abs=1e-4), "with the value model's"


# ---- TrainingArguments hold ----


def test_max_grad_norm_clips(tmp_path):
    free = one_step(tmp_path, max_grad_norm=0.0)
    clipped = one_step(tmp_path, max_grad_norm=1e-3)
    start = dict(toys.trainer(tmp_path).model.named_parameters())
    moved = [sum((w[name] - start[name]).square().sum().item() for name in start) ** 0.5 for w in (free, clipped)]
    assert moved[0] > 2e-3 and moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_bf16_on_a_cpu_trains_in_bf16_and_saves_fp32(tmp_path):
    trainer = toys.trainer(tmp_path, bf16=True, max_steps=4)
    seen = set()
    trainer.model.policy.lm_head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16} and trainer.model.policy.dtype == torch.float32
    assert abs(logged(trainer, "ratio")[0] - 1) < 5e-3


def test_activation_checkpointing_changes_memory_not_results(tmp_path):
    assert_equal_weights(one_step(tmp_path), one_step(tmp_path, activation_checkpointing=True))


def test_the_policys_activations_are_freed_before_the_value_model_has_its_own(tmp_path):
    trainer, activations, freed = toys.trainer(tmp_path, max_steps=1), [], []

    def of_policy(module, inputs, output):
        if torch.is_grad_enabled():
            activations.append(StorageWeakRef(output.untyped_storage()))

    def before_value_model(module, inputs):
        if torch.is_grad_enabled():
            freed.append(bool(activations) and activations[-1].expired())

    trainer.model.policy.model.layers[0].mlp.up_proj.register_forward_hook(of_policy)
    trainer.model.value_model.model.layers[0].mlp.up_proj.register_forward_pre_hook(before_value_model)
    trainer.train()
    assert freed == [True, True] and len(activations) == 2  # two micro-batches


def test_a_callback_can_stop_training(tmp_path):
    class StopAtThree(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = toys.trainer(tmp_path, max_steps=20, trainer_arguments={"callbacks": [StopAtThree()]})
    trainer.train()
    assert trainer.state.global_step == 3


def test_evaluation_reports_reward_kl_and_length_and_leaves_training_as_it_was(tmp_path):
    arguments = {"max_steps": 4, "logging_steps": 2}
    plain = toys.trainer(tmp_path, **arguments)
    plain.train()
    trainer = toys.trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        eval_on_start=True,
        **arguments,
        trainer_arguments={"eval_dataset": toys.prompts(10, seed=5)},
    )
    before = trainer.evaluate()
    assert before["eval_kl"] == 0 and 0 <= before["eval_score"] <= 1 and 1 <= before["eval_response_length"] <= 8
    assert before["eval_scores/even_share"] == pytest.approx(before["eval_score"]) and 0 <= before["eval_eos_rate"] <= 1
    assert trainer.evaluate()["eval_score"] == before["eval_score"]
    trainer.train()
    assert trainer.evaluate()["eval_kl"] != 0 and len(logged(trainer, "eval_score")) >= 5
    assert_equal_weights(weights(plain), weights(trainer))


def test_evaluate_takes_data_sets_that_the_trainer_was_not_made_with(tmp_path):
    data = toys.prompts(10, seed=5)
    trainer = toys.trainer(tmp_path, per_device_eval_batch_size=4, trainer_arguments={"eval_dataset": data})
    own = trainer.evaluate()["eval_score"]
    assert trainer.evaluate(data)["eval_score"] == trainer.evaluate({"x": data})["eval_x_score"] == own
    assert trainer.evaluate(trainer.eval_dataset)["eval_score"] == own
    assert trainer.evaluate(trainer.train_dataset)["eval_score"] != own
    with pytest.raises(InputError, match="evaluation prompts: has columns question"):
        trainer.evaluate(Dataset.from_list([{"question": "w1"}]))


def test_seconds_are_those_of_rollouts_alone(tmp_path, monkeypatch):
    trainer = toys.trainer(tmp_path, max_steps=1, eval_on_start=True, trainer_arguments={"eval_dataset": toys.prompts(8)})
    entries = []
    monkeypatch.setattr(trainer, "_record", lambda name, *_: entries.append(name))
    trainer.train()
    assert entries.count("time/sample") == entries.count("time/score") == entries.count("time/rollout_forward") == 1


def test_a_pad_token_beyond_the_models_embeddings_is_not_fed_to_it(tmp_path):
    tokenizer = toys.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id == toys.VOCABULARY
    trainer = toys.trainer(tmp_path, tok=tokenizer, max_steps=1)
    trainer.train()
    assert trainer.pad_token_id == toys.EOS


def test_adaptive_kl_coefficient_falls_below_the_target_once_a_rollout(tmp_path):
    trainer = toys.trainer(tmp_path, kl_target=1e6, kl_horizon=100, max_steps=6)
    trainer.train()
    factor = 1 - 0.2 * 8 / 100
    assert logged(trainer, "kl_coef") == pytest.approx([0.05, 0.05 * factor, 0.05 * factor**2], rel=1e-6)
    assert trainer.kl_coef == pytest.approx(0.05 * factor**3)


def test_evaluations_write_and_print_their_samples(tmp_path, capsys):
    trainer = toys.trainer(
        tmp_path, per_device_eval_batch_size=4, trainer_arguments={"eval_dataset": toys.prompts(10, seed=5)}
    )
    metrics = trainer.evaluate()
    rows = [json.loads(line) for line in (tmp_path / "completions" / "eval-000000.jsonl").read_bytes().splitlines()]
    assert [row["prompt"] for row in rows] == toys.prompts(10, seed=5)["prompt"]
    assert sum(row["score"] for row in rows) / 10 == pytest.approx(metrics["eval_score"])
    assert all(len(row["completion"].split()) <= row["response_length"] for row in rows)
    assert capsys.readouterr().out.count(" -> ") == 2


def test_early_stopping_callback_stops(tmp_path):
    trainer = toys.trainer(
        tmp_path,
        max_steps=20,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        trainer_arguments={"eval_dataset": toys.prompts(10, seed=5), "callbacks": [EarlyStoppingCallback(2)]},
    )
    trainer.train()
    assert trainer.state.global_step == 3


def last_kl(folder, estimator: str, kl_coef: float) -> float:
    trainer = toys.trainer(
        folder,
        kl_in="loss",
        kl_estimator=estimator,
        kl_coef=kl_coef,
        max_steps=40,
        per_device_train_batch_size=16,
        vf_coef=0.0,
    )
    trainer.train()
    assert logged(trainer, "kl_loss")
    return sum(logged(trainer, "kl")[-5:])


@pytest.fixture(scope="module")
def free_kl(tmp_path_factory):
    """With the coefficient 0 every estimator leaves the same run."""
    return last_kl(tmp_path_factory.mktemp("free"), "k1", 0.0)


@pytest.mark.parametrize("estimator", ["k1", *(pytest.param(name, marks=pytest.mark.long) for name in ("k2", "k3"))])
def test_kl_in_the_loss_holds_the_policy_near_the_reference(tmp_path, estimator, free_kl):
    assert last_kl(tmp_path, estimator, 2.0) < 0.5 * free_kl


def test_a_stop_string_ends_the_response_and_spares_the_penalty(tmp_path):
    seen = {}

    def reward(completions):
        seen["texts"] = completions
        return [0.0] * len(completions)

    bytes_and_specials = train_tokenizer(["abc"], 259, 64)
    trainer = toys.trainer(
        tmp_path,
        model=toys.policy(vocabulary=259),
        reward=reward,
        tok=bytes_and_specials,
        max_completion_length=30,
        data=Dataset.from_list([{"prompt": "abc"}] * 64),
        per_device_train_batch_size=32,
        max_steps=1,
        stop_strings=["a", "e", "i", "o", "u", "st"],
    )
    trainer.train()
    stopped = [text[-1:] in "aeiou" or text.endswith("st") for text in seen["texts"]]
    assert not any(vowel in text[:-1] for text in seen["texts"] for vowel in "aeiou") and sum(stopped) > 10
    assert logged(trainer, "eos_rate")[0] * 64 >= sum(stopped)
    with pytest.raises(InputError, match="stop_strings: the tokenizer cannot encode"):
        toys.trainer(tmp_path, stop_strings=["w4"])


def test_frozen_models_are_on_the_device_only_while_used(tmp_path, monkeypatch):
    trainer = toys.trainer(tmp_path, reward=toys.reward_model(), offload_frozen_models=True, max_steps=4)
    moves = []
    for name, part in (("reward", *trainer.rewards.models), ("reference", trainer.ref_model)):
        monkeypatch.setattr(part, "to", lambda device, name=name: moves.append((name, str(device))))
    trainer.train()
    assert [name for name, _ in moves] == ["reward", "reward", "reference", "reference"] * 2


# ---- Learning ----

BANDIT = {"data": toys.prompts(128), "per_device_train_batch_size": 16, "max_completion_length": 16, "num_ppo_epochs": 4}
BANDIT |= {"kl_coef": 0.01, "logging_steps": 4, "learning_rate": 3e-3}


def test_token_bandit_is_learned(tmp_path):
    trainer = toys.trainer(
        tmp_path,
        reward=lambda completion_ids, **_: [row.count(7) / 16 for row in completion_ids],
        max_steps=4 * 20,
        **BANDIT,
    )
    trainer.train()
    scores = logged(trainer, "score")
    assert scores[0] < 0.05 and sum(scores[-3:]) / 3 >= 0.6


@pytest.mark.parametrize("pad_is_eos", [pytest.param(False, marks=pytest.mark.long), True])
def test_stopping_early_is_learned_with_any_pad(tmp_path, pad_is_eos):
    trainer = toys.trainer(
        tmp_path,
        reward=lambda completion_ids, **_: [1 - len(row) / 16 for row in completion_ids],
        tok=toys.tokenizer(pad_is_eos),
        missing_eos_penalty=1.0,
        max_steps=4 * 11,
        **BANDIT,
    )
    trainer.train()
    rates = logged(trainer, "eos_rate")
    assert rates[0] < 0.5 and sum(rates[-3:]) / 3 >= 0.95
