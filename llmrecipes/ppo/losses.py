"""The mathematics of PPO as pure tensor functions.

Shapes: B responses, T response tokens, padded on the right; `mask` (B, T) is True on real response tokens. Sources:
PPO (arXiv 1707.06347), GAE (arXiv 1506.02438), the KL penalty as a reward and its adaptive coefficient (arXiv 1909.08593);
details follow "The N+ Implementation Details of RLHF with PPO" (arXiv 2403.17031).
"""

from collections.abc import Callable

import torch


def response_mask(lengths: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """(B,) response lengths -> (B, T) mask. Masks come from lengths, never from pad ids, so pad may equal EOS."""
    width = int(lengths.max()) if width is None else width
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimates KL(policy || reference) in nats from tokens sampled by the policy, (B, T) -> (B, T), after
    http://joschu.net/blog/kl-approx.html.

    With r = π_ref / π of the sampled token:
    k1 = -log r is unbiased but negative on many tokens (high variance);
    k2 = k1² / 2 is biased but has low variance (it agrees with the KL to second order in log r);
    k3 = (r - 1) - log r is unbiased, since E_π[r - 1] = 0, and never negative, since log r <= r - 1.
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return 0.5 * k1.square()
    if estimator == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"kl_estimator {estimator!r} is not one of k1, k2, k3")


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
    """Scores (B,), with `normalize` scaled to mean 0 and variance 1 over the rollout, then clipped to ±`clip` unless that
    is None."""
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
    token where the length limit cut the response). Each row sums to score - kl_coef · ΣKL.

    kl: must be k1 (see `kl_estimate`). A reward R enters the policy gradient as E[R ∇log π], and ∇KL = E[k1 ∇log π]; k3 as
    a reward would follow ∇KL(π || π_ref) - ∇KL(π_ref || π) instead.
    token_mask: the tokens that the policy wrote itself; None if it wrote them all. token_rewards: rewards from the
    environment, added at their own tokens. A reward on a token that the policy did not write is moved to the last token
    before it that the policy did write.
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
    """GAE (arXiv 1506.02438, eq. 16): A_t = Σ_k (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} - V_t. The value after the last
    response token is 0: the episode ends there.

    Computed backwards as A_t = δ_t + γλ A_{t+1}. λ = 0 gives δ_t (low variance, as biased as V), λ = 1 the discounted sum of
    rewards minus V_t (unbiased, high variance).

    All tensors are (B, T). Returns (advantages, returns = advantages + values), both 0 outside `mask`. Tokens inside a row
    but outside the mask, which the policy did not write, are not time steps: t + 1 is the next token in the mask.
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
    """Scales masked entries (B, T) or (B,) to variance 1, and to mean 0 unless `shift_mean` is False; 0 outside the mask.

    (x - mean) / sqrt(variance + 1e-8), with the unbiased variance (divided by n - 1). `all_reduce` sums a tensor over
    processes, so that mean and variance are those of the whole rollout and not of one process's share.
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
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7) as a loss: Σ max(-A·ratio, -A·clip(ratio, 1 - ε, 1 + ε)), where
    ratio = π / π_old per token and ε = `cliprange`.

    The clipping removes the gradient once a token's ratio has moved more than ε in the direction its advantage asks for;
    moves in the wrong direction are never clipped. Summed over response tokens: divide by the token count of the optimizer
    step. weights: (B, T), from `importance_sampling_ratio`, multiply each token's term.

    Returns (loss sum, sums over tokens of: approx_kl = ½(Δlogp)², which is k2 of KL(π_old || π); clipfrac; ratio).
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
    """Weights (B, T) that correct the policy loss for responses drawn by another sampler, such as an inference engine
    whose numerics differ: bounded ratios π_policy / π_sampler. 0 outside `mask`.

    mode: "token_*" uses each token's own ratio, "sequence_*" the product over the response for all of its tokens;
    "*_truncate" clips the ratio to [clip_min, clip_max] (truncated importance sampling, Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training"), "*_mask" sets it to 0 outside these bounds. None: no bound on
    that side. A token whose sampling log-probability is NaN (unknown) counts as ratio 1.
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
    """Clipped squared error ½ max((V - R)², (V_clip - R)²) with V_clip = V_old + clip(V - V_old, ±cliprange_value), summed
    over response tokens; also the number of clipped tokens. Not in the PPO paper, but in OpenAI's code and in N+ details."""
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * (torch.maximum(unclipped, clipped) * mask).sum()
    return loss, {"value_clipfrac": ((clipped > unclipped) & mask).sum()}


def kl_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, estimator: str
) -> torch.Tensor:
    """KL(policy || reference) as a term of the loss, summed over response tokens.

    Differentiating an estimator alone is not enough: E[∇k1] = 0, and E[∇k3] = ∇KL(π_ref || π). Weighted by
    ratio = π / π_old (arXiv 2512.02556), the expected gradient is that of the KL, ∇KL = E_π[k1 ∇log π]: for k1 and k3 the
    gradient also flows through the ratio; E_π[∇k2] = E_π[k1 ∇log π] is right already, so its ratio is detached.
    """
    ratio = ((logprobs - old_logprobs) * mask).exp()
    weight = ratio.detach() if estimator == "k2" else ratio
    return (weight * kl_estimate(logprobs, ref_logprobs, estimator) * mask).sum()


def adapt_kl_coef(kl_coef: float, kl: float, target: float, num_episodes: int, horizon: float) -> float:
    """Proportional controller of arXiv 1909.08593 §2.2: moves the coefficient so that the KL per response (nats) meets
    `target`. error = kl / target - 1, clipped to ±0.2; the coefficient changes by the factor 1 + error · num_episodes /
    horizon, so an error of 20 % kept up for `horizon` episodes changes it by about 20 %."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_episodes / horizon)
