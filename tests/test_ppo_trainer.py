"""PPOTrainer: what TrainingArguments promises holds, the gradient does not depend on how a batch is cut, and both
toys."""

import json
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
)

from llmrecipes.config import InputError
from llmrecipes.generation import Response
from llmrecipes.models import train_tokenizer
from llmrecipes.ppo import policy_value
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.losses import response_mask


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def lora() -> dict:
    return {"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in trainer.model.named_parameters()}


def assert_equal_weights(one: dict, other: dict) -> None:
    for name in one:
        assert torch.equal(one[name], other[name]), name


def scripted_sampler(model, prompts, **_) -> list[Response]:
    """Responses that depend on the prompt alone, so that runs with other batches or processes see the same."""
    return [Response([4 + (sum(ids) * k) % 60 for k in range(1, 2 + sum(ids) % 7)], "length") for ids in prompts]


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
weights = tests.one_step(Path({folder!r}), per_device_train_batch_size=2, gradient_accumulation_steps=2, **{extra!r})
if torch.distributed.get_rank() == 0:
    torch.save(weights, {folder!r} + "/weights.pt")
import ppo_toys
ppo_toys.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"ddp_find_unused_parameters": True}], ids=str)
def test_gradient_of_two_processes_equals_that_of_one(tmp_path, extra):
    toys.run_two(tmp_path / "two_ranks.py", TWO_RANKS.format(folder=str(tmp_path), extra=extra))
    one, two = one_step(tmp_path / "one"), torch.load(tmp_path / "weights.pt")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


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


def test_a_sampler_without_logprobs_cannot_give_the_old_ones(tmp_path):
    trainer = toys.trainer(tmp_path, old_logprobs="sampler")
    trainer.sampler = scripted_sampler
    with pytest.raises(InputError, match="old_logprobs: sampler needs .*; use recompute"):
        trainer.train()


def test_a_model_given_by_its_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="model: 'me/policy' is a name; load it first"):
        toys.trainer(tmp_path, model="me/policy")


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


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
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


# ---- Saving and resuming ----


def test_lora_policy_is_saved_as_adapter_and_value_head(tmp_path):
    trainer = toys.trainer(tmp_path, trainer_arguments=lora())
    assert trainer.ref_model is None and trainer.model.shares_trunk
    start = toys.policy()
    trainer.train()
    assert logged(trainer, "kl")[0] == 0 and logged(trainer, "kl")[-1] != 0
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file() and (tmp_path / "value_head.safetensors").is_file()
    for name, part in trainer.model.policy.get_base_model().named_parameters():
        if "lora" not in name:
            assert not part.requires_grad and torch.equal(part, start.get_parameter(name.replace(".base_layer", "")))


@pytest.mark.parametrize("kind", ["shared", "lora", "lora_separate", "kl_in_loss"])
def test_every_kind_of_model_resumes_exactly(tmp_path, kind):
    arguments = {"max_steps": 8, "num_mini_batches": 2, "save_strategy": "steps", "save_steps": 3}
    arguments |= {
        "shared": {"value_model": "shared"},
        "lora": {"trainer_arguments": lora()},
        "lora_separate": {"trainer_arguments": lora(), "value_model": "separate", "reward": toys.reward_model()},
        "kl_in_loss": {"kl_in": "loss", "kl_estimator": "k3"},
    }[kind]
    whole = toys.trainer(tmp_path, **arguments)
    whole.train()
    resumed = toys.trainer(tmp_path, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal_weights(weights(whole), weights(resumed))
    assert logged(whole, "loss") == logged(resumed, "loss")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 2}
    toys.trainer(tmp_path, value_model="shared", **arguments).train()
    for other in ({"value_model": "separate"}, {"trainer_arguments": lora()}):
        with pytest.raises(InputError, match="is missing; a PPO checkpoint holds"):
            toys.trainer(tmp_path, **other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_ppo_epochs": 3}, "num_ppo_epochs: is 3, but .*checkpoint-3 was written with 2"),
        ({"num_mini_batches": 2, "gradient_accumulation_steps": 1}, "num_mini_batches: is 2, but .* with 1"),
        ({"gradient_accumulation_steps": 4}, "rollout_batch_size: is 16, but .* with 8"),
    ],
)
def test_a_checkpoint_whose_rollouts_were_counted_otherwise_is_refused(tmp_path, other, message):
    toys.trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, max_steps=8, **other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_of_an_older_version_does_not_say_how_rollouts_were_counted(tmp_path):
    toys.trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    file = tmp_path / "checkpoint-3" / "ppo_state_0.pt"
    state = torch.load(file, weights_only=True)
    assert state.pop("counted_by")["world_size"] == 1
    torch.save(state, file)
    resumed = toys.trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4


def test_saved_model_is_a_plain_policy_with_the_value_model_beside_it(tmp_path):
    trainer = toys.trainer(tmp_path, reward=toys.reward_model())
    trainer.train()
    trainer.save_model()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    value_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value_model")
    assert_equal_weights(dict(policy.named_parameters()), dict(trainer.model.policy.named_parameters()))
    assert_equal_weights(dict(value_model.named_parameters()), dict(trainer.model.value_model.named_parameters()))
    assert (tmp_path / "model.safetensors").is_file() and policy.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == toys.tokenizer().get_vocab()


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_equals_uninterrupted(tmp_path, stop):
    """Checkpoints in the middle of a rollout (3) and between two (4)."""
    arguments = {
        "max_steps": 8,
        "lr_scheduler_type": "linear",
        "num_mini_batches": 2,
        "gradient_accumulation_steps": 1,
        "kl_target": 0.5,
        "kl_horizon": 100,
        "save_strategy": "steps",
        "save_steps": stop,
        "data": toys.prompts(20),
    }
    whole = toys.trainer(tmp_path / "whole", **arguments)
    whole.train()
    resumed = toys.trainer(tmp_path / "whole", model=toys.policy(), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert_equal_weights(weights(whole), weights(resumed))
    assert whole.kl_coef == resumed.kl_coef
    for name in ("loss", "grad_norm", "score", "kl", "learning_rate"):
        assert logged(whole, name) == logged(resumed, name)


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = toys.trainer(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_response_length",
        greater_is_better=True,
        trainer_arguments={"eval_dataset": toys.prompts(10, seed=5)},
    )
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert_equal_weights(dict(best.named_parameters()), dict(trainer.model.policy.named_parameters()))


# ---- Prompts ----


@pytest.mark.parametrize("prompt", ["w1 w2 w3", [{"role": "user", "content": "w5"}], [5, 6, 7], [7, toys.EOS, 9]], ids=str)
def test_prompts_may_be_text_messages_or_tokens(tmp_path, prompt):
    seen = {}

    def reward(prompts, completions, number, **_):
        seen.update(prompts=prompts, completions=completions, number=number)
        return [float(n) for n in number]

    data = Dataset.from_list([{"prompt": prompt, "number": n} for n in range(8)])
    toys.trainer(tmp_path, reward=reward, data=data, max_steps=1).train()
    assert seen["prompts"] == [prompt] * 8 and sorted(seen["number"]) == list(range(8))
    assert all(isinstance(text, list if isinstance(prompt[0], dict) else str) for text in seen["completions"])


def test_answer_is_opened_where_the_template_ignores_the_generation_prompt(tmp_path):
    own = toys.tokenizer()
    own.chat_template = "{% for m in messages %}{{ 'w8 ' if m.role == 'assistant' }}{{ m.content }} </s> {% endfor %}"
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "w5"}]}] * 8)
    trainer = toys.trainer(tmp_path, data=data, tok=own)
    assert trainer.train_dataset["prompt_ids"][0] == own("w5 </s> w8")["input_ids"]


def test_long_prompts_are_an_error_or_dropped(tmp_path, caplog):
    rows = [{"prompt": [5] * length} for length in (3, 57, 4, 56, *[2] * 8)]
    with pytest.raises(InputError, match="training prompts, row 2: the prompt has 57 tokens, more than 56"):
        toys.trainer(tmp_path, data=Dataset.from_list(rows))
    trainer = toys.trainer(tmp_path, data=Dataset.from_list(rows), overlong_prompts="drop")
    assert len(trainer.train_dataset) == 11 and "dropped 1 prompts of more than 56 tokens" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "w1"}] * 7, "7 are fewer than one rollout of 8"),
        ([{"question": "w1"}] * 8, "has columns question; expected a column `prompt`"),
        *(
            (
                [{"prompt": "w1", column: [1]}] * 8,
                f"the column `{column}` has a name that PPO itself uses for reward functions; rename it",
            )
            for column in ("prompts", "prompt_ids", "completions", "completion_ids", "trainer_state", "log_extra")
        ),
        ([{"prompt": ""}] * 8, "row 1: the prompt is empty"),
        ([{"prompt": [{"role": "user", "content": "w1"}]}] * 8, "row 1: .* no chat template"),
    ],
)
def test_unusable_prompts_are_refused(tmp_path, rows, message):
    tokenizer = toys.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, data=Dataset.from_list(rows), tok=tokenizer)


def test_a_stream_of_prompts_is_refused(tmp_path):
    with pytest.raises(InputError, match="training prompts: a IterableDataset; expected a datasets.Dataset"):
        toys.trainer(tmp_path, data=toys.prompts().to_iterable_dataset())


# ---- Arguments ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rollout_batch_size": 12}, "not a multiple of 8 .*nearest: 8 or 16"),
        ({"rollout_batch_size": 5}, "nearest: 8"),
        ({"rollout_batch_size": 16, "num_mini_batches": 1}, "is not num_mini_batches 1 x 8"),
        ({"max_completion_length": 0}, "max_completion_length: 0"),
        ({"max_completion_length": 64}, "leaves no room for a prompt"),
        ({"temperature": 0.0}, "temperature: 0"),
        ({"kl_estimator": "k4"}, "kl_estimator: 'k4'"),
        ({"lam": 1.5}, "lam: 1.5"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: 5.0 is not for PPO"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: True is not .*; set per_device_train_batch_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 is not for PPO"),
        ({"bf16_full_eval": True}, "bf16_full_eval: True is not .*; set bf16"),
        ({"fp16_full_eval": True}, "fp16_full_eval: True is not .*; set fp16"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy: 'sequential' .*shuffle_dataset: false"),
        ({"kl_in": "advantage"}, "kl_in: 'advantage' is not one of reward, loss"),
        ({"value_model": "none"}, "value_model: 'none' is not one of separate, shared"),
        (
            {"value_model": "shared", "trainer_arguments": {"value_model": toys.reward_model()}},
            "value_model: shared has no model of its own",
        ),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 2}, "value_model: gives 2 labels; expected one value"),
        ({"vocabulary": 63}, "value_model: the tokenizer has 64 tokens, the model only 63"),
        (
            {"max_position_embeddings": 63},
            "value_model: its context of 63 tokens is less than the 64 of prompt and response",
        ),
    ],
)
def test_a_value_model_that_does_not_fit_is_refused(tmp_path, changes, message):
    value_model = toys.reward_model(**changes)
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, trainer_arguments={"value_model": value_model})
    if "max_position_embeddings" in changes:  # enough for shorter prompts
        toys.trainer(tmp_path, trainer_arguments={"value_model": value_model}, max_prompt_length=55)


@pytest.mark.parametrize("build", [toys.policy, lambda: get_peft_model(toys.reward_model(), lora()["peft_config"])])
def test_a_value_model_without_a_head_of_its_own_is_refused(tmp_path, build):
    with pytest.raises(InputError, match="value_model: a .* has no head `score`"):
        toys.trainer(tmp_path, trainer_arguments={"value_model": build()})


def test_a_wrapped_policy_has_no_trunk_to_start_a_value_model_from(tmp_path):
    wrapped = get_peft_model(toys.policy(), lora()["peft_config"])
    with pytest.raises(InputError, match="value_model: separate cannot start from a policy that PEFT has wrapped"):
        toys.trainer(tmp_path, model=wrapped)


def test_models_given_in_two_roles_are_trained_in_one_alone(tmp_path):
    reward, policy = toys.reward_model(), toys.policy()
    frozen = [{n: p.clone() for n, p in model.named_parameters()} for model in (reward, policy)]
    trainer = toys.trainer(
        tmp_path, model=policy, reward=reward, trainer_arguments={"value_model": reward, "ref_model": policy}
    )
    trainer.train()
    assert_equal_weights(frozen[0], dict(trainer.rewards.models[0].model.named_parameters()))
    assert_equal_weights(frozen[1], dict(trainer.ref_model.model.named_parameters()))
    for start, trained in zip(frozen, (trainer.model.value_model, trainer.model.policy), strict=True):
        assert all((p != start[name]).any() for name, p in trained.named_parameters())
    assert toys.trainer(tmp_path, model=policy, trainer_arguments={"ref_model": policy, **lora()}).ref_model is None


def test_data_seed_orders_the_prompts_also_when_it_is_zero(tmp_path):
    orders = {
        (seed, data_seed): list(toys.trainer(tmp_path, seed=seed, data_seed=data_seed)._get_train_sampler())
        for seed, data_seed in ((3, None), (3, 0), (4, 0), (0, None))
    }
    assert orders[3, 0] == orders[4, 0] == orders[0, None] != orders[3, None]


def test_batch_sizes_fill_each_other_in(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "per_device_train_batch_size": 4}
    given = PPOConfig(**common, rollout_batch_size=32, gradient_accumulation_steps=2)
    derived = PPOConfig(**common, num_mini_batches=4, gradient_accumulation_steps=2)
    assert given.num_mini_batches == derived.num_mini_batches == 4
    assert given.rollout_batch_size == derived.rollout_batch_size == 32
    assert given.steps_per_rollout == 16


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = toys.trainer(tmp_path, learning_rate=1e30, max_grad_norm=0.0, optim="sgd", max_steps=20)
    with pytest.raises(InputError, match="is not finite; the last checkpoint"):
        trainer.train()


def test_weights_that_give_no_probabilities_stop_the_run_in_one_line(tmp_path):
    settings = {"learning_rate": 1e30, "max_grad_norm": 0.0, "optim": "sgd", "max_steps": 10}
    with pytest.raises(InputError, match="PPO step 1: a logit of the policy is not finite"):
        toys.trainer(tmp_path, num_ppo_epochs=1, **settings).train()


SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}


@pytest.mark.parametrize("at", [2, 4])  # in an inner step, in the last one
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_broken_gradient_reaches_neither_the_weights_nor_the_last_checkpoint(tmp_path, at, max_grad_norm):
    trainer = toys.trainer(tmp_path, max_grad_norm=max_grad_norm, **SAVING)
    broken = lambda gradient: gradient * float("nan") if trainer.state.global_step == at - 1 else gradient  # noqa: E731
    trainer.model.policy.lm_head.weight.register_hook(broken)
    with pytest.raises(InputError, match=f"PPO step {at - 1}: the gradient is not finite; the last checkpoint in"):
        trainer.train()
    assert_finite_checkpoint(tmp_path, at - 1)


def test_broken_weights_are_not_saved_in_place_of_good_ones(tmp_path):
    class BreakAtThree(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                trainer.model.value_model.score.weight.data.fill_(float("inf"))

    trainer = toys.trainer(tmp_path, trainer_arguments={"callbacks": [BreakAtThree()]}, **SAVING)
    with pytest.raises(InputError, match="PPO step 3: a weight is not finite"):
        trainer.train()
    assert_finite_checkpoint(tmp_path, 2)


def assert_finite_checkpoint(folder: Path, step: int) -> None:
    """The only checkpoint left is that of `step`, and its weights are numbers."""
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    files = list(folder.glob("checkpoint-*/**/*.safetensors"))
    assert len(files) == 2
    for file in files:
        assert all(torch.isfinite(weight).all() for weight in load_file(file).values()), file


# ---- Learning ----


@pytest.mark.slow
def test_token_bandit_is_learned(tmp_path):
    trainer = toys.trainer(
        tmp_path,
        reward=lambda completion_ids, **_: [row.count(7) / 16 for row in completion_ids],
        data=toys.prompts(128),
        per_device_train_batch_size=16,
        max_completion_length=16,
        num_ppo_epochs=4,
        kl_coef=0.01,
        logging_steps=4,
        max_steps=4 * 20,
        learning_rate=3e-3,
    )
    trainer.train()
    scores = logged(trainer, "score")
    assert scores[0] < 0.05 and sum(scores[-3:]) / 3 >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_stopping_early_is_learned_with_any_pad(tmp_path, pad_is_eos):
    trainer = toys.trainer(
        tmp_path,
        reward=lambda completion_ids, **_: [1 - len(row) / 16 for row in completion_ids],
        data=toys.prompts(128),
        tok=toys.tokenizer(pad_is_eos),
        per_device_train_batch_size=16,
        max_completion_length=16,
        num_ppo_epochs=4,
        kl_coef=0.01,
        missing_eos_penalty=1.0,
        logging_steps=4,
        max_steps=4 * 14,
        learning_rate=3e-3,
    )
    trainer.train()
    rates = logged(trainer, "eos_rate")
    assert rates[0] < 0.5 and sum(rates[-3:]) / 3 >= 0.95
