"""PPO's mistakes: configs, models, samplers and columns that it refuses in one line, before it trains."""

import importlib

import ppo_toys as toys
import pytest
import torch
from ppo_toys import Scripted, one_update
from torch import nn

from llmrecipes.config import DataArguments, InputError, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import parse
from llmrecipes.ppo.setup import check_sizes
from llmrecipes.reward_models.arguments import RewardArguments


def test_a_policy_that_draws_numbers_in_training_is_one_line(tmp_path):
    class Noise(nn.Module):
        def forward(self, hidden):
            return hidden + torch.randn_like(hidden) if self.training else hidden

    policy = toys.policy()
    policy.model.layers[0].mlp = nn.Sequential(policy.model.layers[0].mlp, Noise())
    with pytest.raises(InputError, match="PPO step 0: the policy's log-probabilities .*; something in it is random"):
        toys.trainer(tmp_path, model=policy, value_model="shared", max_steps=1).train()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"token_mask": [True]}, "response 0 has 4 tokens, its token_mask 1 entries"),
        ({"token_rewards": [0.0] * 5}, "response 0 has 4 tokens, its token_rewards 5 entries"),
        ({"token_mask": [False] * 4}, "a response has no token that the policy wrote"),
    ],
)
def test_what_a_sampler_tells_has_the_responses_length(tmp_path, told, message):
    with pytest.raises(InputError, match=message):
        one_update(tmp_path, Scripted(**told))


@pytest.mark.parametrize(
    "column, count, message", [("a", 1, "column a has 1 values for"), ("score", 0, "take another name")]
)
def test_a_column_that_cannot_be_logged_is_one_line(tmp_path, column, count, message):
    def told(completions, log_extra, **_):
        log_extra(column, [0] * (count or len(completions)))
        return [1.0] * len(completions)

    with pytest.raises(InputError, match=f"log_extra: .*{message}"):
        toys.trainer(tmp_path, reward=told, max_steps=1).train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef: -0.1 must not be below 0"),
        ({"vf_coef": -1.0}, "vf_coef: -1.0 must not be below 0"),
        ({"kl_target": 1.0, "kl_horizon": 1.5}, "kl_horizon: 1.5 is less than 0.2 x rollout_batch_size 8"),
        ({"total_episodes": 16}, "total_episodes: is given with max_steps"),
        ({"use_liger_kernel": True}, "use_liger_kernel: True is not for PPO"),
        ({"num_generations": 3}, "num_generations: 3 does not divide a rollout of 8 responses"),
        ({"early_stop_kl": 0.0}, "early_stop_kl: 0.0 must be greater than 0"),
        ({"ref_model_dtype": "int8"}, "ref_model_dtype: 'int8' is not one of float32, bfloat16, float16"),
        ({"beta": 0.1}, "beta: is called kl_coef here"),
        ({"epsilon": 0.2}, "epsilon: is called cliprange here"),
        ({"num_iterations": 2}, "num_iterations: is called num_ppo_epochs here"),
        ({"response_length": 8}, "response_length: is called max_completion_length here"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_strategy: there is no evaluation data"),
        ({"eval_on_start": True}, "eval_on_start: there is no evaluation data"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        toys.trainer(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("metric", "sets", "message"),
    [
        (None, False, "do not measure 'loss'; choose from eval_score, eval_kl"),
        ("eval_score", True, "do not measure 'score'; choose from eval_a_score, .*eval_b_score"),
        ("eval_b_score", True, None),
        ("scores/even_share", False, None),
    ],
)
def test_the_best_model_is_chosen_by_what_evaluations_measure(tmp_path, metric, sets, message):
    data = toys.prompts(8)
    arguments = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": True,
        "trainer_arguments": {"eval_dataset": {"a": data, "b": data} if sets else data},
    }
    if message is None:
        toys.trainer(tmp_path, **arguments).train()
    else:
        with pytest.raises(InputError, match=f"metric_for_best_model: PPO's evaluations {message}"):
            toys.trainer(tmp_path, **arguments)


def test_a_value_model_that_knows_fewer_tokens_than_the_policy_writes_is_refused(tmp_path):
    with pytest.raises(InputError, match="value model: .* 64 tokens, the policy can write 72 .*resize_token_emb"):
        toys.trainer(tmp_path, model=toys.policy(vocabulary=72), reward=toys.reward_model())
    check_sizes(toys.policy(), toys.reward_model(vocabulary=72))
    trainer = toys.trainer(
        tmp_path,
        model=toys.policy(vocabulary=72),
        reward=toys.reward_model(),
        value_model="shared",
        max_steps=1,
        data=toys.prompts().map(lambda row: {"prompt": " ".join(f"w{i}" for i in row["prompt"][:3])}),
    )
    trainer.train()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (toys.policy, "is not a reward model but LlamaForCausalLM"),
        (lambda: toys.reward_model(num_labels=2), "gives 2 labels"),
    ],
)
def test_the_recipe_refuses_what_is_no_reward_model_before_it_loads_anything(tmp_path, monkeypatch, model, message):
    model().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1"}\n')
    monkeypatch.syspath_prepend(toys.ROOT / "recipes")
    recipe = importlib.import_module("ppo")
    argv = {
        "model_name_or_path": tmp_path / "model",
        "reward_model_name_or_path": tmp_path / "model",
        "datasets": tmp_path / "prompts.jsonl",
        "output_dir": tmp_path / "out",
    }
    argv = [word for key, value in argv.items() for word in (f"--{key}", str(value))]
    types = RunArguments, DataArguments, PreviewArguments, "llmrecipes.ppo.config:PPOConfig", ModelArguments
    types += (RewardArguments, recipe.ValueArguments, "llmrecipes.evaluation.watch:WatchArguments")
    with pytest.raises(InputError, match=f"reward_model_name_or_path: .*{message}"):
        recipe.main(*parse(*types, argv=argv))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cache_implementation": "static"}, "unexpected keyword argument 'cache_implementation'"),
        ({"old_logprobs": "sampler"}, "unexpected keyword argument 'return_logprobs'"),
        ({}, None),
    ],
)
def test_a_sampler_that_does_not_take_what_a_key_asks_for_is_refused_before_training(tmp_path, monkeypatch, keys, message):
    def own(
        model,
        prompts,
        *,
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        eos_token_ids,
        pad_token_id,
        batch_size,
        generator,
        stopping_criteria,
    ):
        raise AssertionError("not asked yet")

    monkeypatch.setattr(toys, "sample_responses", own)
    if not message:
        assert toys.trainer(tmp_path, **keys).sampler is own
        return
    with pytest.raises(InputError, match=f"sampler: own does not fit .*{message}"):
        toys.trainer(tmp_path, **keys)
    monkeypatch.setattr(toys, "sample_responses", lambda model, prompts, **options: own(model, prompts))
    assert toys.trainer(tmp_path, **keys)
