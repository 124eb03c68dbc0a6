"""PPO's mathematics against naive or hand-computed values."""

import math

import pytest
import torch

from llmrecipes.ppo.losses import (
    adapt_kl_coef,
    adjust_scores,
    apply_missing_eos_penalty,
    generalized_advantage_estimate,
    kl_estimate,
    kl_loss,
    policy_loss,
    response_mask,
    shape_rewards,
    value_loss,
    whiten,
)

LENGTHS = torch.tensor([5, 1, 3])


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(3, 5, dtype=torch.double), torch.randn(3, 5, dtype=torch.double), response_mask(LENGTHS)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_equals_the_sum_of_its_definition(lam, gamma):
    rewards, values, mask = ragged()
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma, lam)
    for row, length in enumerate(LENGTHS.tolist()):
        next_values = [*values[row, 1:length].tolist(), 0.0]
        deltas = [rewards[row, t] + gamma * next_values[t] - values[row, t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            torch.testing.assert_close(advantages[row, t], expected)
            torch.testing.assert_close(returns[row, t], expected + values[row, t])
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_gae_does_not_see_padding():
    rewards, values, mask = ragged()
    wide = [torch.cat([part, torch.full((3, 4), 9.0, dtype=torch.double)], 1) for part in (rewards, values)]
    wide_mask = response_mask(LENGTHS, 9)
    expected = generalized_advantage_estimate(rewards, values, mask, 1.0, 0.95)
    for part, wide_part in zip(expected, generalized_advantage_estimate(*wide, wide_mask, 1.0, 0.95), strict=True):
        assert torch.equal(wide_part[:, :5], part) and not wide_part[:, 5:].any()


def test_kl_estimators_follow_their_formulas_and_vanish_at_equality():
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])
    k1 = torch.tensor([0.5, -1.5])
    torch.testing.assert_close(kl_estimate(logprobs, reference, "k1"), k1)
    torch.testing.assert_close(kl_estimate(logprobs, reference, "k2"), k1**2 / 2)
    torch.testing.assert_close(kl_estimate(logprobs, reference, "k3"), (-k1).exp() - 1 + k1)
    for estimator in ("k1", "k2", "k3"):
        assert not kl_estimate(logprobs, logprobs, estimator).any()
    assert (kl_estimate(torch.randn(100), torch.randn(100), "k3") >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_meet_the_exact_categorical_kl(estimator):
    torch.manual_seed(0)
    policy, reference = (torch.randn(10).double().log_softmax(-1) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)
    estimates = kl_estimate(policy[tokens], reference[tokens], estimator)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(len(tokens))


def test_rewards_sum_to_score_minus_weighted_kl_and_the_score_stands_on_the_last_token():
    kl = torch.rand(3, 5)
    scores = torch.tensor([1.0, -2.0, 0.5])
    mask = response_mask(LENGTHS)
    rewards = shape_rewards(scores, kl, LENGTHS, 0.1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.1 * (kl * mask).sum(1))
    without = shape_rewards(torch.zeros(3), kl, LENGTHS, 0.1)
    assert (rewards - without).nonzero().tolist() == [[0, 4], [1, 0], [2, 2]]


def test_missing_eos_penalty_subtracts_or_replaces():
    scores, finished = torch.tensor([3.0, 3.0]), torch.tensor([True, False])
    assert apply_missing_eos_penalty(scores, finished, 1.0, "subtract").tolist() == [3.0, 2.0]
    assert apply_missing_eos_penalty(scores, finished, 1.0, "replace").tolist() == [3.0, -1.0]
    assert apply_missing_eos_penalty(scores, finished, None, "subtract").tolist() == [3.0, 3.0]


def test_scores_are_normalised_then_clipped():
    scores = torch.tensor([0.0, 0.0, 0.0, 12.0])
    normal = adjust_scores(scores, True, None)
    torch.testing.assert_close(normal, (scores - scores.mean()) / scores.std())
    assert adjust_scores(scores, False, 5.0).tolist() == [0.0, 0.0, 0.0, 5.0]
    assert adjust_scores(scores, True, 1.0).max() == 1.0


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_the_unpadded_computation(shift_mean):
    values, _, mask = ragged()
    flat = values[mask]
    expected = (flat - flat.mean()) / flat.std() + (0 if shift_mean else flat.mean())
    whitened = whiten(values, mask, shift_mean)
    torch.testing.assert_close(whitened[mask], expected, atol=1e-6, rtol=1e-6)
    assert not whitened[~mask].any()


def test_whitening_over_two_ranks_equals_one():
    values, _, mask = ragged()
    parts = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    # Replays the two collective calls (sum and count, then squares) with the sum of both ranks' contributions.
    recorded = [[], []]
    for rank, part in enumerate(parts):
        whiten(*part, all_reduce=lambda x, rank=rank: recorded[rank].append(x) or x)
    moments = recorded[0][0] + recorded[1][0]
    mean = moments[0] / moments[1]
    squares = sum((((v - mean) * m) ** 2).sum() for v, m in parts)
    together = [whiten(*part, all_reduce=lambda x: moments if x.ndim else squares) for part in parts]
    torch.testing.assert_close(torch.cat(together), whiten(values, mask))


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "loss", "clipped"),
    [
        (1.0, math.log(1.5), -1.2, 1),  # gain capped at 1 + cliprange
        (1.0, math.log(0.5), -0.5, 0),
        (-1.0, math.log(0.5), 0.8, 1),  # loss not reduced below 1 - cliprange
        (-1.0, math.log(1.5), 1.5, 0),
        (2.0, 0.0, -2.0, 0),
    ],
)
def test_policy_loss_clips_as_computed_by_hand(advantage, log_ratio, loss, clipped):
    old = torch.full((1, 3), -2.0)
    mask = torch.tensor([[True, False, False]])
    total, stats = policy_loss(old + log_ratio, old, torch.full((1, 3), advantage), mask, 0.2)
    assert total.item() == pytest.approx(loss, abs=1e-6)
    assert stats["clipfrac"] == clipped
    assert stats["approx_kl"].item() == pytest.approx(log_ratio**2 / 2, abs=1e-6)
    assert stats["ratio"].item() == pytest.approx(math.exp(log_ratio), abs=1e-6)


def test_policy_gradient_of_a_clipped_token_is_zero():
    logprobs = torch.tensor([[0.5, -0.5]], requires_grad=True)
    loss, _ = policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.2)
    loss.backward()
    assert logprobs.grad[0, 0] == 0 and logprobs.grad[0, 1] != 0


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (1.0, 0.0, 2.0, 0.5 * 1.8**2, 1),  # moved past the clip: the clipped error, being larger, counts
        (0.1, 0.0, 2.0, 0.5 * 1.9**2, 0),
        (3.0, 0.0, 2.0, 0.5 * 1.8**2, 1),
        (-1.0, 0.0, 2.0, 0.5 * 3.0**2, 0),
    ],
)
def test_value_loss_clips_as_computed_by_hand(value, old, target, loss, clipped):
    tensors = [torch.full((1, 2), x) for x in (value, old, target)]
    total, stats = value_loss(*tensors, torch.tensor([[True, False]]), 0.2)
    assert total.item() == pytest.approx(loss, abs=1e-5)
    assert stats["value_clipfrac"] == clipped


def test_kl_coefficient_rises_above_the_target_and_falls_below_it():
    assert adapt_kl_coef(0.1, kl=6.6, target=6.0, num_episodes=100, horizon=1000) == pytest.approx(0.1 * 1.01)
    assert adapt_kl_coef(0.1, kl=60.0, target=6.0, num_episodes=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapt_kl_coef(0.1, kl=0.0, target=6.0, num_episodes=100, horizon=1000) == pytest.approx(0.1 * 0.98)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_loss_has_the_gradient_of_the_exact_kl(estimator):
    """Summed over all tokens with the sampling policy's probabilities: the expectation, not an estimate."""
    torch.manual_seed(0)
    logits, reference, old = (torch.randn(8, dtype=torch.double) for _ in range(3))
    logits.requires_grad_()
    logprobs, ref_logprobs, old_logprobs = (part.log_softmax(0) for part in (logits, reference, old))
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref_logprobs)).sum(), logits, retain_graph=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    expected = sum(
        old_logprobs[token].exp()
        * kl_loss(logprobs[None, [token]], old_logprobs[None, [token]], ref_logprobs[None, [token]], mask, estimator)
        for token in range(8)
    )
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, exact)
