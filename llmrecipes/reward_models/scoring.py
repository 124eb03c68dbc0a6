"""How a response is fed to a reward model and scored: the one reading of a reward model that every stage uses."""

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.formats import is_conversation
from llmrecipes.models import load_reward_model, load_tokenizer, read_config
from llmrecipes.processes import device

RewardFunction = PreTrainedModel | Callable[..., list[float]]


def reward_name(reward: RewardFunction) -> str:
    """The name a reward function has in logs and errors."""
    if isinstance(reward, PreTrainedModel):
        return reward.config._name_or_path.rstrip("/").split("/")[-1] or type(reward).__name__
    return getattr(reward, "__name__", type(reward).__name__)


def check_reward_model(model: PreTrainedModel) -> None:
    """Raises InputError unless the model gives one score."""
    if model.config.num_labels != 1:
        raise InputError(f"reward model {reward_name(model)}: gives {model.config.num_labels} labels; needed is one score")


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers assign the same ids to the same tokens."""
    return one is other or one.get_vocab() == other.get_vocab()


def reward_model_tokens(
    tokenizer: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    prompt,
    prompt_ids: list[int],
    completion: str,
    completion_ids: list[int],
    finished: bool,
) -> list[int]:
    """What a reward model reads for one response. source: the tokenizer that the ids are of; `tokenizer` itself if the
    reward model reads them as they are.

    A conversation is rendered by the reward model's own chat template, as in its training. Text and token prompts are
    joined with the response's token ids or, for another tokenizer, re-encoded from text with its EOS at the end of a
    finished one.
    """
    if is_conversation(prompt):
        if tokenizer.chat_template is None:
            raise InputError("reward model: the prompts are conversations but its tokenizer has no chat template")
        messages = prompt + [{"role": "assistant", "content": completion}]
        if prompt[-1]["role"] == "assistant":
            messages = prompt[:-1] + [{"role": "assistant", "content": prompt[-1]["content"] + completion}]
        return tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    if tokenizer is source:
        return prompt_ids + completion_ids
    text = prompt if isinstance(prompt, str) else source.decode(prompt_ids, skip_special_tokens=True)
    ids = tokenizer(text + completion)["input_ids"]
    ends = finished and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]
    return ids + [tokenizer.eos_token_id] * ends


@torch.no_grad()
def score_with_model(model: PreTrainedModel, token_rows: list[list[int]], batch_size: int) -> torch.Tensor:
    """Scores (R,) of token sequences, read at each row's last token.

    That position comes from the row's length and not from the pad id: a row's own EOS is never taken for padding.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(row) for row in token_rows)
    if context is not None and longest > context:
        raise InputError(
            f"reward model {reward_name(model)}: prompt and response have {longest} tokens, its context {context}"
        )
    scores = torch.zeros(len(token_rows), device=model.device)
    order = sorted(range(len(token_rows)), key=lambda row: len(token_rows[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = torch.tensor([len(token_rows[row]) for row in rows])
        input_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for place, row in enumerate(rows):
            input_ids[place, : lengths[place]] = torch.tensor(token_rows[row])
        input_ids, lengths = input_ids.to(model.device), lengths.to(model.device)
        if hasattr(model, "score"):  # causal trunk and linear head, transformers' usual form of a reward model
            last = token_hidden_states(model, input_ids)[torch.arange(len(rows), device=model.device), lengths - 1]
            logits = model.score(last)
        else:  # encoders pool at the first token
            mask = torch.arange(input_ids.shape[1], device=model.device)[None, :] < lengths[:, None]
            logits = model(input_ids=input_ids, attention_mask=mask.long()).logits
        scores[torch.tensor(rows, device=model.device)] = logits[:, 0].float()
    if not torch.isfinite(scores).all():
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise InputError(f"reward model {reward_name(model)}: gave {scores[row].item()} for row {row} of the rollout")
    return scores


def token_hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, H) of a model's causal trunk."""
    return getattr(model, model.base_model_prefix)(input_ids=input_ids, use_cache=False)[0]


class RewardJudge:
    """Scores of a reward model, which reads a conversation by its own chat template; by default on this process's device."""

    def __init__(self, model_args: ModelArguments, path: str, place: torch.device | None = None):
        own = copy.copy(model_args)
        own.model_name_or_path, own.tokenizer_name_or_path = path, None
        self.tokenizer = load_tokenizer(own)
        self.model = load_reward_model(own, self.tokenizer).eval()
        if not hasattr(self.model, "hf_device_map"):
            self.model.to(place or device())

    def score(self, rows: list[dict], texts: list[str], batch_size: int) -> list[float]:
        """One score an answer, the higher the better; scores of different reward models cannot be compared."""
        token_rows = []
        for row, text in zip(rows, texts, strict=True):
            prompt = row["prompt"]
            ids = [self.tokenizer(part)["input_ids"] for part in (prompt, text)] if isinstance(prompt, str) else ([], [])
            token_rows.append(reward_model_tokens(self.tokenizer, self.tokenizer, prompt, ids[0], text, ids[1], True))
        return score_with_model(self.model, token_rows, batch_size).tolist()


def check_reward_path(path: str, key: str = "reward_model_name_or_path") -> None:
    """InputError for `key` unless `path` holds a sequence classifier: a policy's scores would be a random head's."""
    kinds = read_config(path, key).architectures or []
    if not any("SequenceClassification" in kind or "Reward" in kind for kind in kinds):
        raise InputError(f"{key}: {path} is no reward model but {', '.join(kinds) or 'of no known kind'}")


def doubts(samples: list[dict], source: ModelArguments, batch_size: int = 32) -> list[float]:
    """For each sample the reward model's doubt: the mean of p (1 - p) over its answer pairs, p by Bradley-Terry.

    Highest, 0.25, where the model cannot tell the answers apart: there a judgement teaches it most.
    """
    import torch

    from llmrecipes.models import load_reward_model, load_tokenizer

    tokenizer = load_tokenizer(source)
    model = load_reward_model(source, tokenizer).eval()
    rows = []
    for sample in samples:
        for text in sample["responses"]:
            if isinstance(sample["prompt"], str):
                rows.append(tokenizer(sample["prompt"] + text)["input_ids"])
            else:
                turns = [*sample["prompt"], {"role": "assistant", "content": text}]
                rows.append(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
    scores = iter(score_with_model(model, rows, batch_size).tolist())
    result = []
    for sample in samples:
        own = torch.tensor([next(scores) for _ in sample["responses"]])
        p = torch.sigmoid(own[:, None] - own[None, :])
        result.append(float((p * (1 - p))[~torch.eye(len(own), dtype=torch.bool)].mean()))
    return result
