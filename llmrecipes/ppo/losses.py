"""The mathematics of PPO as pure tensor functions.

Shapes: B responses, T response tokens, padded on the right; `mask` (B, T) is True on real response tokens. Sources:
PPO (arXiv 1707.06347), GAE (arXiv 1506.02438), KL-shaped rewards and the adaptive coefficient (arXiv 1909.08593), the
details as in "The N+ Implementation Details of RLHF with PPO" (arXiv 2403.17031).
"""

from collections.abc import Callable

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")


def response_mask(lengths: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """(B,) response lengths -> (B, T) mask. Masks come from lengths, never from pad ids, so pad may equal EOS."""
    width = int(lengths.max()) if width is None else width
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimates KL(policy || reference) from sampled tokens, (B, T) -> (B, T), after
    http://joschu.net/blog/kl-approx.html.

    k1 is unbiased and may be negative; k2 = k1²/2 is biased and of low variance; k3 = exp(-k1) - 1 + k1 is unbiased
    and >= 0.
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return 0.5 * k1.square()
    if estimator == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"kl_estimator {estimator!r} is none of {', '.join(KL_ESTIMATORS)}")


def apply_missing_eos_penalty(
    scores: torch.Tensor, finished: torch.Tensor, penalty: float | None, mode: str
) -> torch.Tensor:
    """Lowers the score (B,) of responses without an end-of-sequence token: "subtract" takes `penalty` off (TRL),
    "replace" sets the score to -`penalty` (N+ details)."""
    if penalty is None:
        return scores
    punished = scores - penalty if mode == "subtract" else torch.full_like(scores, -penalty)
    return torch.where(finished, scores, punished)


def adjust_scores(
    scores: torch.Tensor, normalize: bool, clip: float | None, all_reduce: Callable | None = None
) -> torch.Tensor:
    """Scores (B,) scaled to mean 0 and variance 1 over the rollout, then clipped to ±`clip`; each if asked for."""
    if normalize:
        scores = whiten(scores, torch.ones_like(scores, dtype=torch.bool), all_reduce=all_reduce)
    return scores if clip is None else scores.clamp(-clip, clip)


def shape_rewards(
    scores: torch.Tensor,
    kl: torch.Tensor,
    lengths: torch.Tensor,
    kl_coef: float,
    token_mask: torch.Tensor | None = None,
    token_rewards: torch.Tensor | None = None,
) -> torch.Tensor:
    """Token rewards (B, T): -kl_coef · KL on every response token, plus the score on the last one (the EOS token, or the
    token where the length limit cut the response). Sums to score - kl_coef · ΣKL in each row.

    kl: k1 (see `kl_estimate`); another estimator's gradient here would not be that of the KL. token_mask: the tokens that
    the policy wrote, where that is not all. token_rewards: the environment's own, added where they stand. Whatever stands
    on a token that the policy did not write counts for the last one before it that it did.
    """
    mask = response_mask(lengths, kl.shape[1])
    rewards = torch.zeros_like(kl) if token_rewards is None else token_rewards * mask
    rewards[torch.arange(len(rewards), device=rewards.device), lengths - 1] += scores.to(rewards.dtype)
    if token_mask is not None:
        mask, carried = mask & token_mask, torch.zeros_like(rewards[:, 0])
        for t in reversed(range(rewards.shape[1])):
            carried = carried + rewards[:, t]
            rewards[:, t] = carried * mask[:, t]
            carried = carried * ~mask[:, t]
    return rewards - kl_coef * kl * mask


def generalized_advantage_estimate(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE: A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} - V_t, the value after the last response token being 0.

    All (B, T); returns (advantages, returns = advantages + values), zero outside `mask`. Tokens outside it within a row,
    which the policy did not write, are no steps of it: t + 1 is the next token of the mask.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    carried, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        step = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * carried
        carried = torch.where(mask[:, t], step, carried)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = carried * mask[:, t]
    return advantages, advantages + values


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    shift_mean: bool = True,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Scales the masked entries to variance 1 (and mean 0, unless `shift_mean` is False); 0 outside the mask.

    `all_reduce` sums a tensor over processes, so that the moments are those of the whole batch.
    """
    add_up = all_reduce or (lambda tensor: tensor)
    values = values * mask
    total, count = add_up(torch.stack([values.sum(), mask.sum().to(values.dtype)]))
    mean = total / count.clamp(min=1)
    squares = add_up(((values - mean) * mask).square().sum())
    scaled = (values - mean) * torch.rsqrt(squares / (count - 1).clamp(min=1) + 1e-8)
    return (scaled if shift_mean else scaled + mean) * mask


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """PPO's clipped surrogate, summed over response tokens (divide by the token count of the optimizer step), each
    times its weight (B, T): `importance_sampling_ratio`.

    Returns (loss sum, sums over tokens of: approx_kl ½(Δlogp)², clipfrac, ratio).
    """
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    weights = mask if weights is None else mask * weights
    loss = (torch.maximum(unclipped, clipped) * weights).sum()
    with torch.no_grad():
        stats = {
            "approx_kl": 0.5 * log_ratio.square().sum(),
            "clipfrac": ((clipped > unclipped) & mask).sum(),
            "ratio": (ratio * mask).sum(),
        }
    return loss, stats


def importance_sampling_ratio(
    logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    mask: torch.Tensor,
    mode: str,
    clip_min: float | None,
    clip_max: float | None,
) -> torch.Tensor:
    """Weights (B, T) that make a policy loss right for responses drawn by another sampler, such as an inference engine
    whose numerics differ: π_policy / π_sampler, kept from growing without bound. 0 outside `mask`.

    mode: "token_*" takes each token's ratio, "sequence_*" that of the whole response for each of its tokens;
    "*_truncate" clips it to [clip_min, clip_max] (truncated importance sampling, Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training"), "*_mask" sets it to 0 outside. A bound of None is open. Where
    the sampler's log-probability is NaN (not known) the token's ratio is 1.
    """
    granularity, constraint = mode.split("_")
    difference = torch.nan_to_num(logprobs - sampling_logprobs, nan=0.0) * mask
    if granularity == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(mask)
    ratio = difference.exp()
    low, high = -torch.inf if clip_min is None else clip_min, torch.inf if clip_max is None else clip_max
    if constraint == "truncate":
        ratio = ratio.clamp(low, high)
    else:
        ratio = ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
    return ratio * mask


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped squared error ½ max((V-R)², (clip(V)-R)²), summed over response tokens; also the sum of clipped
    tokens."""
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * (torch.maximum(unclipped, clipped) * mask).sum()
    return loss, {"value_clipfrac": ((clipped > unclipped) & mask).sum()}


def kl_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, estimator: str
) -> torch.Tensor:
    """KL(policy || reference) as a term of the loss, summed over response tokens.

    Weighted by the probability ratio to the sampling policy, so that the expected gradient is that of the KL (for k1 and
    k3 through the weight as in arXiv 2512.02556; k2's own gradient is right already, its weight carries none).
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()
    weight = ratio.detach() if estimator == "k2" else ratio
    return (weight * kl_estimate(logprobs, ref_logprobs, estimator) * mask).sum()


def adapt_kl_coef(kl_coef: float, kl: float, target: float, num_episodes: int, horizon: float) -> float:
    """Proportional controller of arXiv 1909.08593 §2.2: moves the coefficient so that the KL per response (nats) meets
    `target`; `horizon` is the number of episodes over which a 100 % error would be acted on in full."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_episodes / horizon)
