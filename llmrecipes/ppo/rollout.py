"""A rollout: the sampled batch that several optimizer steps train on, and its split into micro-batches."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from llmrecipes.config import InputError
from llmrecipes.ppo.losses import response_mask
from llmrecipes.ppo.policy_value import PolicyAndValue

MODEL_INPUTS = ("input_ids", "prompt_lengths", "response_lengths")
PER_ROW = ("prompt_lengths", "response_lengths")
PER_TOKEN = ("logprobs", "ref_logprobs", "values", "advantages", "returns", "importance_sampling_ratio", "token_mask")


@dataclass
class Rollout:
    """R responses with everything the update needs; all tensors on one device.

    input_ids: (R, L) prompt + response, padded on the right. prompt_lengths, response_lengths: (R,).
    logprobs, ref_logprobs, values, advantages, returns: (R, T), entry t belongs to response token t, 0 on padding;
    ref_logprobs (under the reference) only if the loss needs them.
    sampling_logprobs: (R, T) as the sampler returned them, if it did, NaN where unknown; dropped once they have been turned
    into importance_sampling_ratio (R, T), the weights of the policy loss.
    token_mask: (R, T) bool, the response tokens to train on; None means all. False on text that the sampler inserted from
    tools or users, and on truncated responses with mask_truncated_completions.
    token_rewards: (R, T), the sampler's own rewards.
    early_stopped: set once the remaining optimizer steps are to be skipped (early_stop_kl).
    """

    input_ids: torch.Tensor
    prompt_lengths: torch.Tensor
    response_lengths: torch.Tensor
    logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    sampling_logprobs: torch.Tensor | None = None
    importance_sampling_ratio: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None
    token_rewards: torch.Tensor | None = None
    early_stopped: torch.Tensor | None = None

    @classmethod
    def from_responses(cls, prompts: list[list[int]], responses: list[list[int]], pad_token_id: int, device) -> "Rollout":
        """Concatenates each prompt with its response (token ids) and pads on the right."""
        rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        lengths = (torch.tensor(list(map(len, parts)), device=device) for parts in (prompts, responses))
        return cls(_padded(rows, pad_token_id, device), *lengths)

    def take_from_sampler(self, responses: list) -> None:
        """Takes over what the sampler may return with each response besides its tokens: `logprobs`, `token_mask` (False on
        tokens that the policy did not write) and `token_rewards`.

        Raises InputError where a mask or rewards do not have the response's length, or a response has no policy token.
        """
        unknown = float("nan")
        logprobs = [getattr(response, "logprobs", None) for response in responses]
        if all(row is not None for row in logprobs):
            logprobs = [[unknown if value is None else value for value in row] for row in logprobs]
            self.sampling_logprobs = _padded(logprobs, unknown, self.input_ids.device)
        for name, default in (("token_mask", True), ("token_rewards", 0.0)):
            rows = [getattr(response, name, None) for response in responses]
            if all(row is None for row in rows):
                continue
            lengths = self.response_lengths.tolist()
            rows = [[default] * length if row is None else list(row) for row, length in zip(rows, lengths, strict=True)]
            for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                if len(row) != length:
                    raise InputError(f"sampler: response {number} has {length} tokens, its {name} {len(row)} entries")
            setattr(self, name, _padded(rows, type(default)(), self.input_ids.device))
        if self.token_mask is not None and not self.token_mask.any(1).all():
            raise InputError("sampler: a response has no token that the policy wrote (token_mask)")

    def mask(self) -> torch.Tensor:
        """(R, T): the response tokens to train on: all, or those of `token_mask`."""
        return learned_mask(self.response_lengths, self.token_mask, int(self.response_lengths.max()))

    def __len__(self) -> int:
        return len(self.input_ids)

    def micro_batch(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """The tensors of the given rows, trimmed to the longest of these."""
        index = torch.tensor(rows, device=self.input_ids.device)
        batch = {name: getattr(self, name)[index] for name in PER_ROW}
        width = int((batch["prompt_lengths"] + batch["response_lengths"]).max())
        batch["input_ids"] = self.input_ids[index, :width]
        tokens = int(batch["response_lengths"].max())
        for name in PER_TOKEN:
            if getattr(self, name) is not None:
                batch[name] = getattr(self, name)[index, :tokens]
        return batch

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors, for a checkpoint; `Rollout(**state)` restores them."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor.cpu() for name, tensor in present.items() if tensor is not None}


def _padded(rows: list[list], value, device) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)


def learned_mask(lengths: torch.Tensor, token_mask: torch.Tensor | None, width: int) -> torch.Tensor:
    """(B,) lengths, (B, T) or None -> (B, T): the tokens to train on."""
    mask = response_mask(lengths, width)
    return mask if token_mask is None else mask & token_mask


def forward_rollout(
    model: PolicyAndValue,
    ref_model: PreTrainedModel | None,
    rollout: Rollout,
    micro_batches: list[list[int]],
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills in the rollout's logprobs and values; returns (reference logprobs, entropy), each (R, T).

    If the rollout already has logprobs they are kept, and the entropy is estimated by -logprobs of the sampled token
    (unbiased, since the entropy is E[-log π]). ref_model: None stands for the policy without its adapter.
    """
    device = rollout.input_ids.device
    shape = len(rollout), int(rollout.response_lengths.max())
    rollout.values, ref_logprobs, entropy = (torch.zeros(shape, device=device) for _ in range(3))
    part = None if rollout.logprobs is None else "value"
    if part is None:
        rollout.logprobs = torch.zeros(shape, device=device)
    else:
        entropy = -rollout.logprobs
    for rows in micro_batches:
        batch = {name: part for name, part in rollout.micro_batch(rows).items() if name in MODEL_INPUTS}
        place = torch.tensor(rows, device=device), slice(int(batch["response_lengths"].max()))
        logprobs, spread, rollout.values[place] = model(**batch, temperature=temperature, return_entropy=True, part=part)
        if part is None:
            rollout.logprobs[place], entropy[place] = logprobs, spread
        ref_logprobs[place] = model.reference_logprobs(ref_model, batch, temperature)
    return ref_logprobs, entropy


def row_statistics(
    rollout: Rollout, scores: torch.Tensor, finished: torch.Tensor, kl: torch.Tensor, entropy: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Metrics of single responses, each (R,): the score before penalties, KL from the reference (nats, summed over the
    response), entropy (nats, mean over its tokens), length (tokens) and whether the model ended it with EOS."""
    return {
        "score": scores,
        "kl": kl.sum(1),
        "entropy": entropy.sum(1) / rollout.mask().sum(1).clamp(min=1),
        "response_length": rollout.response_lengths.float(),
        "eos_rate": finished.float(),
    }


def mismatch_statistics(
    rollout: Rollout, mask: torch.Tensor, mode: str, gather: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, tuple]:
    """TRL's metrics of how far the sampler's log-probabilities are from the policy's, each as (sum, count) of this
    process; `gather` collects a tensor from all. The ratio's are per response in a sequence_* mode, else per token."""
    difference = (rollout.logprobs - rollout.sampling_logprobs).abs()[mask]
    difference = difference[~difference.isnan()]
    ratio = rollout.importance_sampling_ratio
    ratio = ratio[:, 0] if mode.startswith("sequence") else ratio[mask]
    largest = difference.max() if difference.numel() else difference.new_zeros(())
    return {
        "sampling/sampling_logp_difference/mean": (difference.sum(), difference.numel()),
        "sampling/sampling_logp_difference/max": (gather(largest).max(), 1),
        "sampling/importance_sampling_ratio/min": (gather(ratio.min()).min(), 1),
        "sampling/importance_sampling_ratio/mean": (ratio.sum(), ratio.numel()),
        "sampling/importance_sampling_ratio/max": (gather(ratio.max()).max(), 1),
    }


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns) over response tokens: 1 for a perfect value model, 0 for a constant one."""
    values, returns = values[mask], returns[mask]
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0).clamp(min=1e-12)


def split_rollout(
    lengths: torch.Tensor, num_mini_batches: int, micro_batch_size: int, generator: torch.Generator
) -> list[list[list[int]]]:
    """Splits rows at random into minibatches, and each minibatch into micro-batches of similar length (little padding).

    lengths: (R,) total tokens per row. Returns [minibatch][micro-batch][row]. The loss is a mean over all tokens of the
    minibatch, so its split into micro-batches has no influence on the gradient.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = len(order) // num_mini_batches
    lengths = lengths.tolist()
    minibatches = []
    for start in range(0, len(order), size):
        rows = sorted(order[start : start + size], key=lambda row: (lengths[row], row))
        minibatches.append([rows[i : i + micro_batch_size] for i in range(0, size, micro_batch_size)])
    return minibatches
