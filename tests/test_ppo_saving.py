"""What PPO saves and how it goes on: policies, adapters, value models, checkpoints of other kinds, steps that broke."""

from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from ppo_toys import assert_equal_weights, logged, lora, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from llmrecipes.config import InputError

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


@pytest.mark.parametrize("value_model", ["separate", pytest.param("shared", marks=pytest.mark.long)])
def test_best_policy_and_its_value_model_are_what_is_saved_at_the_end(tmp_path, value_model):
    trainer = toys.trainer(
        tmp_path,
        max_steps=4,
        value_model=value_model,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=False,  # the reward grows, so the last policy is not the best
        trainer_arguments={"eval_dataset": toys.prompts(10, seed=5)},
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    best, last = Path(trainer.state.best_model_checkpoint), tmp_path / "checkpoint-4"
    assert best != last
    files = [file.relative_to(best) for file in best.rglob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        assert_equal_weights(load_file(best / file), saved := load_file(tmp_path / "saved" / file))
        assert not all(torch.equal(tensor, saved[name]) for name, tensor in load_file(last / file).items())


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
