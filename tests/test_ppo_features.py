"""PPO beyond the plain algorithm: critic rate and warm-up, early stop, several responses a prompt, cut responses, tool
tokens and rewards of the sampler, precision."""

import json

import ppo_toys as toys
import pytest
import torch
from ppo_toys import Scripted, logged, one_update

from llmrecipes.config import InputError
from llmrecipes.generation import Response, sample_responses
from llmrecipes.ppo import PPOConfig, PPOTrainer
from llmrecipes.ppo.losses import generalized_advantage_estimate, shape_rewards


def moved(trainer, start: dict) -> dict[str, bool]:
    """Whether the policy and the value model are no longer what they were."""
    now = dict(trainer.model.named_parameters())
    return {
        part: any(not torch.equal(now[name], start[name]) for name in start if name.startswith(part))
        for part in ("policy", "value_model")
    }


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


# ---- What trains ----


def test_the_value_model_has_its_own_learning_rate(tmp_path):
    arguments = {"learning_rate": 0.0, "value_learning_rate": 1e-3, "weight_decay": 0.1, "max_steps": 2}
    trainer = toys.trainer(tmp_path, save_strategy="steps", save_steps=1, **arguments)
    start = weights(trainer)
    trainer.train()
    assert moved(trainer, start) == {"policy": False, "value_model": True}
    assert logged(trainer, "learning_rate") == [0.0, 0.0]
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0, 1e-3}
    again = toys.trainer(tmp_path, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, weights(again)[name])


def test_the_value_model_warms_up_alone(tmp_path):
    trainer = toys.trainer(tmp_path, value_warmup_rollouts=1, weight_decay=0.1, max_steps=2)
    start = weights(trainer)
    trainer.train()
    assert moved(trainer, start) == {"policy": False, "value_model": True}
    trainer = toys.trainer(tmp_path, value_warmup_rollouts=1, max_steps=3)
    trainer.train()
    assert moved(trainer, start)["policy"]
    with pytest.raises(InputError, match="value_warmup_rollouts: it would move a shared trunk"):
        toys.trainer(tmp_path, value_warmup_rollouts=1, value_model="shared")


def test_a_rollouts_steps_end_once_the_policy_has_moved_too_far(tmp_path):
    arguments = {"num_ppo_epochs": 4, "max_steps": 8, "learning_rate": 1e-2, "early_stop_kl": 1e-4}
    trainer = toys.trainer(tmp_path, save_strategy="steps", save_steps=3, **arguments)
    seen = []
    step = trainer.training_step

    def keep(model, inputs, count=None):
        before = weights(trainer)
        loss = step(model, inputs, count)
        seen.append((trainer._rollout.early_stopped is not None, before))
        return loss

    trainer.training_step = keep
    trainer.train()
    # Two micro-batches a step. The first step finds approx_kl 0, the second more than the limit; the others do nothing.
    assert logged(trainer, "early_stopped") == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [stopped for stopped, _ in seen] == ([False] * 3 + [True] * 5) * 2
    assert all(torch.equal(seen[4][1][name], seen[7][1][name]) for name in seen[4][1])
    assert len(logged(trainer, "approx_kl")) == 4
    again = toys.trainer(tmp_path, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(trainer).items())


def test_trained_weights_are_float32_and_frozen_ones_what_they_were(tmp_path, caplog):
    policy, reward = toys.policy().to(torch.bfloat16), toys.reward_model().to(torch.bfloat16)
    trainer = toys.trainer(tmp_path, model=policy, reward=reward, max_steps=1, num_ppo_epochs=1, learning_rate=3e-6)
    start = weights(trainer)
    trainer.train()
    now = weights(trainer)
    changed = sum((now[name] != start[name]).sum().item() for name in now if name.startswith("policy"))
    assert changed > 0.9 * sum(weight.numel() for name, weight in now.items() if name.startswith("policy"))
    assert {weight.dtype for weight in now.values()} == {torch.float32} and logged(trainer, "kl") == [0.0]
    assert trainer.rewards.models[0].model.dtype == torch.bfloat16
    assert "policy: its weights are trained in float32" in caplog.text and "set bf16: true" in caplog.text


def test_the_references_dtype_is_a_key(tmp_path):
    trainer = toys.trainer(tmp_path, ref_model_dtype="bfloat16", max_steps=1)
    trainer.train()
    assert trainer.ref_model.model.dtype == torch.bfloat16 and trainer.model.policy.dtype == torch.float32
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=0.1)


# ---- What is sampled ----


def test_each_prompt_of_a_rollout_gets_num_generations_responses(tmp_path):
    seen = []
    trainer = toys.trainer(
        tmp_path,
        data=toys.prompts(4),
        num_generations=4,
        max_steps=4,
        reward=lambda completions, number: seen.append(number) or [0.0] * len(number),
    )
    trainer.train()
    assert len(seen) == 2 and sorted(seen[0] + seen[1]) == sorted([0, 1, 2, 3] * 4)
    for numbers in seen:
        assert len(numbers) == 8 and all(len(set(numbers[i : i + 4])) == 1 for i in (0, 4))


def test_a_tools_tokens_are_not_learned_from_and_are_no_steps(tmp_path):
    plain = one_update(tmp_path, Scripted())
    tool = one_update(tmp_path, Scripted(token_mask=[True, True, False, True]))
    rollout = tool._rollout
    assert not rollout.advantages[:, 2].any() and rollout.advantages[:, [0, 1, 3]].all()
    assert rollout.mask().sum() == 24 and plain._rollout.mask().sum() == 32
    # The same as a rollout that never had them: values and rewards of the policy's own tokens alone.
    own = [0, 1, 3]
    rewards = torch.zeros(8, 3)
    rewards[:, -1] = tool.rewards.score(
        {"prompt": [None] * 8, "prompt_ids": [[]] * 8}, [row[-4:] for row in tokens_of(rollout)], [True] * 8, 8
    )[:, 0]
    advantages, _ = generalized_advantage_estimate(
        rewards, rollout.values[:, own], torch.ones(8, 3, dtype=torch.bool), 1.0, 0.95
    )
    torch.testing.assert_close(rollout.advantages[:, own], advantages)


def tokens_of(rollout) -> list[list[int]]:
    ends = (rollout.prompt_lengths + rollout.response_lengths).tolist()
    return [row[:end] for row, end in zip(rollout.input_ids.tolist(), ends, strict=True)]


def test_rewards_of_the_environment_stand_on_their_tokens(tmp_path):
    given = [0.0, 0.0, 5.0, 0.0]
    trainer = one_update(tmp_path, Scripted(token_rewards=given, token_mask=[True, True, False, True]), lam=1.0)
    without = one_update(tmp_path, Scripted(token_mask=[True, True, False, True]), lam=1.0)
    gained = trainer._rollout.returns - without._rollout.returns
    # What a tool's token brings counts for the policy's last one before it.
    torch.testing.assert_close(gained, torch.tensor([[5.0, 5.0, 0.0, 0.0]]).expand(8, 4))
    assert logged(trainer, "token_rewards") == [5.0] and logged(trainer, "score") == logged(without, "score")


def test_token_rewards_sum_to_score_and_penalty_whatever_the_mask():
    generator = torch.Generator().manual_seed(0)
    kl, rewards = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    lengths, mask = torch.tensor([5, 3, 1]), torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    scores, real = torch.tensor([1.0, -2.0, 3.0]), torch.arange(5) < lengths[:, None]
    shaped = shape_rewards(scores, kl, lengths, 0.1, mask, rewards)
    expected = scores - 0.1 * (kl * mask * real).sum(1) + (rewards * real).sum(1)
    torch.testing.assert_close(shaped.sum(1), expected)
    assert not shaped[~(mask & real)].any()
    assert shaped[0, 2] == rewards[0, 2:].sum() + scores[0] - 0.1 * kl[0, 2]


def test_nothing_is_learned_from_cut_responses(tmp_path):
    def cut_alone(model, prompts, **settings):
        return [Response(response.token_ids, "length") for response in Scripted()(model, prompts, **settings)]

    trainer = one_update(tmp_path, Scripted(), mask_truncated_completions=True, whiten_advantages=True)
    lengths = trainer._rollout.prompt_lengths
    assert not trainer._rollout.advantages[lengths % 2 == 1].any() and trainer._rollout.mask().sum() < 32
    trainer = toys.trainer(tmp_path, mask_truncated_completions=True, max_steps=1, vf_coef=0.0)
    start, trainer.sampler = weights(trainer), cut_alone
    trainer.train()
    assert moved(trainer, start) == {"policy": False, "value_model": False}


# ---- What is reported ----


def test_scores_of_functions_are_raw_and_the_score_weighs_them(tmp_path):
    def half(completions):
        return [0.5] * len(completions)

    trainer = toys.trainer(tmp_path, reward=[toys.even_share, half], reward_weights=[0.0, 4.0], max_steps=1)
    trainer.train()
    assert logged(trainer, "score") == [2.0] and logged(trainer, "scores/half") == [0.5]
    assert logged(trainer, "scores/even_share")[0] > 0


def test_log_lines_show_a_response_of_the_latest_rollout(tmp_path, capsys):
    trainer = toys.trainer(tmp_path, num_rollout_completions=2, max_steps=4)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "completions" / "train.jsonl").read_bytes().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 3, 3] and {"prompt", "completion", "score", "kl"} <= set(rows[0])
    assert capsys.readouterr().out.count(" -> ") == 4


@pytest.mark.parametrize("differs", [False, True])
def test_a_reward_that_is_the_same_for_all_responses_is_said_once(tmp_path, capsys, differs):
    def solved(completion_ids):
        return [float(differs and 3 in ids) for ids in completion_ids]

    toys.trainer(tmp_path, reward=solved, max_steps=9).train()
    line = "warning: reward function solved: every response of the first 4 rollouts got 0,"
    assert capsys.readouterr().out.count(line) == (not differs)


def test_reward_functions_log_metrics_and_columns_in_rollouts_and_evaluations(tmp_path):
    def told(completion_ids, log_metric, log_extra, **_):
        log_metric("mean_length", len(completion_ids[0]))
        log_extra("golden", [{"ids": ids} for ids in completion_ids])
        return [1.0] * len(completion_ids)

    keys = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "num_rollout_completions": 2}
    evaluated = {"eval_dataset": toys.prompts(4)}
    trainer = toys.trainer(tmp_path, reward=told, trainer_arguments=evaluated, max_completion_length=5, **keys)
    trainer.train()
    for name, prefix in (("train", ""), ("eval-000001", "eval_")):
        rows = [json.loads(line) for line in (tmp_path / "completions" / f"{name}.jsonl").read_text().splitlines()]
        lengths = [len(row["golden"]["ids"]) for row in rows]
        assert len(rows) > 1 and all(1 <= length <= 5 for length in lengths)
        assert logged(trainer, f"{prefix}mean_length")[0] >= 1
    assert logged(trainer, "eval_mean_length") == [lengths[0]], "of the one batch, its first response"


def test_no_responses_are_shown_where_none_are_wanted(tmp_path):
    toys.trainer(tmp_path, num_rollout_completions=0, max_steps=2).train()
    assert not (tmp_path / "completions").exists()


def test_the_penalty_in_the_reward_is_k1_whatever_is_reported(tmp_path):
    runs = {}
    for estimator in ("k1", "k2", "k3"):
        trainer = toys.trainer(tmp_path, kl_estimator=estimator, kl_coef=1.0, max_steps=4, learning_rate=3e-2)
        trainer.train()
        runs[estimator] = weights(trainer), logged(trainer, "kl")[-1]
    for estimator in ("k2", "k3"):
        assert all(torch.equal(weight, runs["k1"][0][name]) for name, weight in runs[estimator][0].items())
        assert runs[estimator][1] > 0 and runs[estimator][1] != runs["k1"][1]


# ---- For users of TRL ----


def test_sampler_and_tokenizer_have_defaults(tmp_path):
    toys.policy().save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    policy = toys.policy().from_pretrained(tmp_path)
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "max_completion_length": 8}
    args = PPOConfig(**settings)
    trainer = PPOTrainer(model=policy, args=args, train_dataset=toys.prompts(), reward_funcs=toys.even_share)
    assert trainer.sampler is sample_responses and trainer.processing_class.get_vocab() == toys.tokenizer().get_vocab()
    with pytest.raises(InputError, match="processing_class: there is no tokenizer next to the policy"):
        PPOTrainer(model=toys.policy(), args=args, train_dataset=toys.prompts(), reward_funcs=toys.even_share)
    with pytest.raises(InputError, match="reward_funcs: is missing"):
        PPOTrainer(model=policy, args=args, train_dataset=toys.prompts())
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True).rollout_batch_size == 64
