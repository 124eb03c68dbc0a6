"""Prompts, models and arguments of PPO: which are taken, and that all others are refused in one line."""

import ppo_toys as toys
import pytest
from datasets import Dataset
from peft import get_peft_model
from ppo_toys import assert_equal_weights, lora, scripted_sampler

from llmrecipes.config import InputError
from llmrecipes.ppo.config import PPOConfig


def test_a_sampler_without_logprobs_cannot_give_the_old_ones(tmp_path):
    trainer = toys.trainer(tmp_path, old_logprobs="sampler")
    trainer.sampler = scripted_sampler
    with pytest.raises(InputError, match="old_logprobs: sampler needs .*; use recompute"):
        trainer.train()


def test_a_model_given_by_its_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="model: 'me/policy' is a name; load it first"):
        toys.trainer(tmp_path, model="me/policy")


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
                f"the column `{column}` has a name that training itself gives to reward functions; rename it",
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
