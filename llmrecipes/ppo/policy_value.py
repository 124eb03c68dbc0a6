"""The trained module: policy and value model behind one forward call, which computes on response tokens only.

Batches are right-padded: each row is prompt + response + padding. Causal attention never looks to the right, so no
attention mask is needed and the padding has no influence.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

from llmrecipes.config import InputError
from llmrecipes.models import check_vocabulary, context_length, keep_trainable
from llmrecipes.ppo.losses import response_mask
from llmrecipes.ppo.sharding import FrozenModel, copy_model, copy_weights, gathered, run_within
from llmrecipes.reward_models.scoring import token_hidden_states, trunk
from llmrecipes.sharding import layers_of

# Bytes of float32 logits held at a time (128 MiB), unless `logprob_chunk_size` says otherwise.
LOGITS_BYTES = 1 << 27


class PolicyAndValue(nn.Module):
    """Policy and value model as one module, so that DDP and FSDP see one root call.

    value_model: a sequence classifier with a trunk of its own, or a linear head (`build_value_head`) that reads the
    policy's hidden states: the shared trunk.
    """

    def __init__(
        self, policy: PreTrainedModel | PeftModel, value_model: PreTrainedModel | nn.Linear, chunk_size: int | None = None
    ):
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.chunk_size = chunk_size
        self.config = policy.config  # Trainer and its callbacks read it
        # FSDP wraps each of these layers: those of both trunks.
        self._no_split_modules = layers_of(causal_lm(policy)) | layers_of(value_model)

    @property
    def shares_trunk(self) -> bool:
        return isinstance(self.value_model, nn.Linear)

    def forward(
        self,
        input_ids=None,
        prompt_lengths=None,
        response_lengths=None,
        temperature=1.0,
        return_entropy=False,
        part: str | None = None,
        function: Callable | None = None,
    ):
        """(B, L) token ids, (B,) lengths -> (logprobs, entropy or None, values), each (B, T) float32, 0 on padding.

        part: "policy" or "value" computes only that model's outputs and returns None in place of the others.
        function: if given, only calls it and returns its result, for what must run inside a forward call (see `sharding`).
        """
        if function is not None:
            return function()
        batch = input_ids, prompt_lengths, response_lengths
        logprobs = entropy = values = None
        if part != "value" or self.shares_trunk:
            hidden, mask = response_hidden_states(causal_lm(self.policy), *batch)
        if part != "value":
            logprobs, entropy = _logprobs(self.policy, hidden, *batch, temperature, return_entropy, self.chunk_size)
        if part != "policy" and self.shares_trunk:
            values = _to_padded(self.value_model(hidden.to(self.value_model.weight.dtype)).squeeze(-1).float(), mask)
        elif part != "policy":
            values = response_values(self.value_model, *batch)
        return logprobs, entropy, values

    def reference_logprobs(self, ref_model: FrozenModel | None, batch: dict, temperature: float) -> torch.Tensor:
        """(B, T) log-probabilities of the response tokens under `ref_model`; None is the policy without its adapter."""
        settings = {**batch, "temperature": temperature, "chunk_size": self.chunk_size}
        if ref_model is not None:
            return ref_model(response_logprobs, **settings)[0]
        with self.policy.disable_adapter():
            return run_within(self, lambda: response_logprobs(self.policy, **settings))[0]

    def tie_weights(self) -> None:
        """FSDP breaks tied weights apart when it moves them, and calls this to tie them again."""
        causal_lm(self.policy).tie_weights()

    @property
    def generation_config(self):
        """The policy's: Trainer aligns its special tokens with the tokenizer's."""
        return self.policy.generation_config

    def activation_checkpointing_enable(self, **kwargs):
        """Recomputes activations in both models during the backward pass."""
        causal_lm(self.policy).activation_checkpointing_enable(**kwargs)
        if not self.shares_trunk:
            self.value_model.activation_checkpointing_enable(**kwargs)


def causal_lm(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The language model itself, with any LoRA layers, without PEFT's wrapper."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def add_adapter(policy: PreTrainedModel, peft_config: PeftConfig, activation_checkpointing: bool) -> PeftModel:
    """The policy, frozen and perhaps quantised, with a new adapter; only the adapter is trained."""
    if getattr(policy, "is_quantized", False):
        policy = prepare_model_for_kbit_training(policy, use_gradient_checkpointing=activation_checkpointing)
        keep_trainable(policy)
    return get_peft_model(policy, peft_config)


def response_hidden_states(
    model: PreTrainedModel, input_ids, prompt_lengths, response_lengths
) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states (N, H) from which the N real response tokens are predicted, and the mask (B, T) of these tokens."""
    mask = response_mask(response_lengths)
    rows, steps = mask.nonzero(as_tuple=True)
    return token_hidden_states(model, input_ids)[rows, prompt_lengths[rows] - 1 + steps], mask


def response_logprobs(
    policy: PreTrainedModel | PeftModel,
    input_ids,
    prompt_lengths,
    response_lengths,
    temperature: float = 1.0,
    return_entropy: bool = False,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (B, T) of the response tokens under the policy at `temperature`, and its entropy (B, T) in nats
    (without gradient).

    The LM head is applied only to the hidden states of response tokens, `chunk_size` of them at a time (default: 128 MiB of
    logits): the full logits, B × L × V, never exist. 1,024 tokens of a vocabulary of 128k would be 0.5 GiB in float32.
    """
    batch = input_ids, prompt_lengths, response_lengths
    hidden, _ = response_hidden_states(causal_lm(policy), *batch)
    return _logprobs(policy, hidden, *batch, temperature, return_entropy, chunk_size)


def _logprobs(
    policy, hidden, input_ids, prompt_lengths, response_lengths, temperature, return_entropy, chunk_size
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`response_logprobs`, given the trunk's hidden states (N, H)."""
    model = causal_lm(policy)
    mask = response_mask(response_lengths)
    rows, steps = mask.nonzero(as_tuple=True)
    targets = input_ids[rows, prompt_lengths[rows] + steps]

    def of_chunk(hidden, targets):
        return _SelectLogprobs.apply(_logits(model, hidden), targets, temperature, return_entropy)

    chunk_size = chunk_size or max(1, LOGITS_BYTES // 4 // model.config.get_text_config().vocab_size)
    num_chunks = _num_chunks(model, -(-len(targets) // chunk_size))
    if num_chunks == 1:
        logprobs, entropy = of_chunk(hidden, targets)
    else:  # the backward pass recomputes each chunk's logits instead of keeping them all
        # If another process has more tokens, the last chunks here are empty.
        sizes = [min(chunk_size, max(0, len(targets) - i * chunk_size)) for i in range(num_chunks)]
        parts = [
            checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(hidden.split(sizes), targets.split(sizes), strict=True)
        ]
        logprobs = torch.cat([part[0] for part in parts])
        entropy = torch.cat([part[1] for part in parts]) if return_entropy else None
    return _to_padded(logprobs, mask), _to_padded(entropy, mask) if return_entropy else None


class _SelectLogprobs(torch.autograd.Function):
    """Logits (N, V), targets (N,) -> log-probabilities (N,) at `temperature`, entropy (N,) or None, both float32.

    d log p(target) / d logits = (onehot(target) - softmax) / temperature. Autograd would keep several (N, V) tensors; this
    keeps one, the log-softmax, and turns it into the gradient in place.
    """

    @staticmethod
    def forward(ctx, logits, targets, temperature, return_entropy):
        logits = logits.float()
        logprobs = (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
        ctx.save_for_backward(logprobs, targets)
        ctx.temperature = temperature
        entropy = -(logprobs.exp().mul_(logprobs)).sum(-1) if return_entropy else None
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        logprobs, targets = ctx.saved_tensors
        grad = (grad / ctx.temperature)[:, None]
        gradient = logprobs.exp_().mul_(-grad)
        return gradient.scatter_add_(-1, targets[:, None], grad), None, None, None


def _num_chunks(model: PreTrainedModel, own: int) -> int:
    """The largest number of chunks on any process: ZeRO-3 gathers the head for each chunk, a collective that every process
    must join. Without ZeRO-3, `own`."""
    weight = model.get_output_embeddings().weight
    if not hasattr(weight, "ds_id"):
        return own
    most = torch.tensor(own, device=weight.device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


class _TrunkOutput(BaseModelOutputWithPast):
    def __getattr__(self, name):  # fields of other architectures' outputs, such as router logits
        return None


def _logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """(N, H) last hidden states -> (N, V) logits.

    Uses the model's own forward rather than `lm_head(hidden)`, because some models scale or cap their logits after the head.
    """
    output = _TrunkOutput(last_hidden_state=hidden[None])
    inner = trunk(model)
    # OPT's head calls the decoder inside its trunk.
    parts = [part for part in (inner, getattr(inner, "decoder", None)) if isinstance(part, nn.Module)]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_replaced_forward(part, lambda *_, **__: output))
        # Some models look at the shape of the ids.
        input_ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        # Not [0], whose backward pass would copy the gradient into zeros.
        return model(input_ids=input_ids, use_cache=False).logits.squeeze(0)


@contextmanager
def _replaced_forward(module: nn.Module, forward):
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def response_values(value_model: PreTrainedModel, input_ids, prompt_lengths, response_lengths) -> torch.Tensor:
    """Values (B, T): entry t is the value of the state before response token t is chosen."""
    hidden, mask = response_hidden_states(value_model, input_ids, prompt_lengths, response_lengths)
    return _to_padded(value_model.score(hidden).squeeze(-1).float(), mask)


def _to_padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def check_value_model(value_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """Raises InputError unless a value model given by the user gives one value per token for rows of `longest` tokens."""
    if not isinstance(value_model, PreTrainedModel) or not hasattr(value_model, "score"):
        raise InputError(
            f"value_model: a {type(value_model).__name__} has no head `score`; "
            "give a causal model's AutoModelForSequenceClassification, without a wrapper"
        )
    if value_model.config.num_labels != 1:
        raise InputError(
            f"value_model: gives {value_model.config.num_labels} labels; expected one value; load it with num_labels=1"
        )
    check_vocabulary(value_model, tokenizer, "value_model")
    context = context_length(value_model)
    if context is not None and context < longest:
        raise InputError(
            f"value_model: its context of {context} tokens is less than the {longest} of prompt and response; lower "
            f"max_prompt_length and max_completion_length to {context} in sum, or use another model"
        )


def build_value_model(policy: PreTrainedModel, reward_model: PreTrainedModel | None) -> PreTrainedModel:
    """A separate value model: a copy of the reward model, or else the policy's trunk with a new head (values start at 0).

    Raises:
        InputError: the policy is wrapped by PEFT, or its architecture has no sequence classifier.
    """
    if reward_model is not None:
        return copy_model(reward_model).requires_grad_(True)
    if isinstance(policy, PeftModel):
        raise InputError(
            "value_model: separate cannot start from a policy that PEFT has wrapped; pass the plain model and peft_config, "
            "or a value_model, or set value_model: shared"
        )
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    try:
        value_model = AutoModelForSequenceClassification.from_config(config)
        if not hasattr(value_model, "score"):  # CTRL's head has another name
            raise ValueError("no head `score`")
    except ValueError as error:
        raise InputError(
            f"value model: {type(policy).__name__} has no sequence-classification form; set value_model: shared, or pass a "
            "value_model of another architecture that reads the same tokens"
        ) from error
    value_model.to(dtype=policy.dtype, device=policy.device)
    copy_weights(trunk(policy), trunk(value_model))
    with gathered([value_model.score], write=True):
        nn.init.zeros_(value_model.score.weight)
    return value_model


def build_value_head(policy: PreTrainedModel) -> nn.Linear:
    """A value head (H -> 1) for the policy's own trunk; values start at 0."""
    head = nn.Linear(policy.get_output_embeddings().in_features, 1, bias=False, device=policy.device)
    nn.init.zeros_(head.weight)
    return head
