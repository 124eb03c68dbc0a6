"""The trained module: policy and value model behind one forward call, which computes on response tokens only.

A batch is left-flushed: each row is prompt + response, padded on the right. Causal attention never looks to the
right, so no attention mask is needed and whatever fills the padding has no influence.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from llmrecipes.config import InputError
from llmrecipes.ppo.losses import response_mask


class PolicyAndValue(nn.Module):
    """Policy and value model as one module, so that DDP and FSDP see one root call."""

    def __init__(self, policy: PreTrainedModel, value_model: PreTrainedModel):
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.config = policy.config  # Trainer and its callbacks read it

    def forward(self, input_ids, prompt_lengths, response_lengths, temperature=1.0, return_entropy=False):
        """(B, L) token ids, (B,) lengths -> (logprobs, entropy or None, values), each (B, T) float32, 0 on padding."""
        logprobs, entropy = response_logprobs(
            self.policy, input_ids, prompt_lengths, response_lengths, temperature, return_entropy
        )
        values = response_values(self.value_model, input_ids, prompt_lengths, response_lengths)
        return logprobs, entropy, values

    @property
    def generation_config(self):
        """The policy's: Trainer aligns its special tokens with the tokenizer's."""
        return self.policy.generation_config

    def activation_checkpointing_enable(self, **kwargs):
        """Recomputes activations in both models during the backward pass."""
        self.policy.activation_checkpointing_enable(**kwargs)
        self.value_model.activation_checkpointing_enable(**kwargs)


def _predicting_positions(prompt_lengths, response_lengths):
    """Where each response token is predicted from: (mask (B, T), rows (N,), columns (N,)) with N real response
    tokens."""
    mask = response_mask(response_lengths)
    rows, steps = mask.nonzero(as_tuple=True)
    return mask, rows, prompt_lengths[rows] - 1 + steps


def response_logprobs(
    policy: PreTrainedModel, input_ids, prompt_lengths, response_lengths, temperature=1.0, return_entropy=False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (B, T) of the response tokens under the policy at `temperature`, and its entropy (no
    gradient).

    The LM head sees the hidden states of response tokens alone, packed to (N, H): no B × L × V tensor ever exists.
    """
    mask, rows, columns = _predicting_positions(prompt_lengths, response_lengths)

    # A hook and not `hidden @ lm_head`, because some models scale or cap their logits after the head.
    def keep_response_positions(_, inputs):
        return (inputs[0][rows, columns],)

    hook = policy.get_output_embeddings().register_forward_pre_hook(keep_response_positions)
    try:
        logits = policy(input_ids=input_ids, use_cache=False).logits
    finally:
        hook.remove()
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    log_normalizer = logits.logsumexp(-1)
    targets = input_ids[rows, columns + 1]
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normalizer
    entropy = None
    if return_entropy:
        with torch.no_grad():
            probabilities = (logits - log_normalizer[:, None]).exp()
            entropy = _to_padded(log_normalizer - (probabilities * logits).sum(-1), mask)
    return _to_padded(logprobs, mask), entropy


def response_values(value_model: PreTrainedModel, input_ids, prompt_lengths, response_lengths) -> torch.Tensor:
    """Values (B, T): entry t is the value of the state before response token t is chosen."""
    mask, rows, columns = _predicting_positions(prompt_lengths, response_lengths)
    hidden = token_hidden_states(value_model, input_ids)[rows, columns]
    return _to_padded(value_model.score(hidden).squeeze(-1).float(), mask)


def token_hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, H) of a sequence classifier's causal trunk."""
    return getattr(model, model.base_model_prefix)(input_ids=input_ids, use_cache=False)[0]


def _to_padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def build_value_model(policy: PreTrainedModel, reward_model: PreTrainedModel | None) -> PreTrainedModel:
    """A separate value model: a copy of the reward model, or the policy's trunk under a fresh head (values start at
    0)."""
    if reward_model is not None:
        return copy.deepcopy(reward_model).requires_grad_(True)
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    try:
        value_model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(
            f"value model: {type(policy).__name__} has no sequence-classification form; pass value_model"
        ) from error
    value_model.to(dtype=policy.dtype, device=policy.device)
    trunk = getattr(policy, policy.base_model_prefix)
    getattr(value_model, value_model.base_model_prefix).load_state_dict(trunk.state_dict())
    nn.init.zeros_(value_model.score.weight)
    return value_model


def disable_dropout(models: Iterable[nn.Module]) -> None:
    """Sets every dropout probability to 0: with dropout the first probability ratio would not be 1."""
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
