"""How a response is fed to a reward model and scored: the single implementation, used by every stage.

Training, the health check, evaluation, `watch_reward_model`, ranking by uncertainty and PPO all take their tokens
from `reward_model_tokens` and their scores at each row's last token.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes import templates
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.tables import say
from llmrecipes.generation import answer_texts
from llmrecipes.models import context_length, load_reward_model, load_tokenizer, read_config
from llmrecipes.processes import device
from llmrecipes.turns import is_conversation

RewardFunction = PreTrainedModel | Callable[..., list[float]]


def reward_name(reward: RewardFunction) -> str:
    """The name of a reward function in logs and errors."""
    if isinstance(reward, PreTrainedModel):
        return reward.config._name_or_path.rstrip("/").split("/")[-1] or type(reward).__name__
    return getattr(reward, "__name__", type(reward).__name__)


def check_reward_model(model: PreTrainedModel) -> None:
    """Raises InputError unless the model is a classifier with one label."""
    if model.get_output_embeddings() is not None:
        raise InputError(
            f"reward model {reward_name(model)}: a {type(model).__name__} writes text and gives no score; train a reward "
            "model from it (recipes/reward.py)"
        )
    if model.config.num_labels != 1:
        raise InputError(f"reward model {reward_name(model)}: gives {model.config.num_labels} labels; expected one score")


def check_reward_path(path: str, key: str = "reward_model_name_or_path", trust_remote_code: bool = False) -> None:
    """InputError for `key` unless `path` holds a sequence classifier with one label, or an adapter of one: a language model
    would be given a random head. Reads only configs."""
    if Path(path, "adapter_config.json").is_file():
        if "SEQ_CLS" not in str(read_config(path, key, PeftConfig).task_type):
            raise InputError(f"{key}: {path} is not a reward model but another adapter; train one with recipes/reward.py")
        return
    config = read_config(path, key, trust_remote_code=trust_remote_code)
    kinds = config.architectures or []
    if not any("SequenceClassification" in kind or "Reward" in kind for kind in kinds):
        raise InputError(f"{key}: {path} is not a reward model but {', '.join(kinds) or 'of no known kind'}")
    if config.num_labels != 1:
        raise InputError(f"{key}: {path} gives {config.num_labels} labels; a reward model gives one score")


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers assign the same ids to the same tokens."""
    return one is other or one.get_vocab() == other.get_vocab()


def reward_model_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict], response: str | list[dict], finished: bool = True
) -> list[int]:
    """Token ids of a prompt and response as a reward model reads them. tokenizer: the reward model's own.

    Text: prompt and response tokenised together, with the special tokens that the tokenizer puts in front, and EOS after a
    finished response. Conversation: rendered by the chat template, complete (with EOS if the template writes no end token)
    or, if the response was truncated, up to that point; a prompt whose last turn is the assistant's is continued.

    Raises InputError for a conversation without a chat template, or one that the template refuses.
    """
    if is_conversation(prompt):
        return _conversation_tokens(tokenizer, prompt, response, finished)
    eos = tokenizer.eos_token_id
    text = prompt + response
    ids = list(tokenizer(text)["input_ids"])
    if finished:
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
    # Some tokenizers append EOS to every text.
    return ids[:-1] if ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token) else ids


def _conversation_tokens(tokenizer, prompt: list[dict], response: str | list[dict], finished: bool) -> list[int]:
    if not tokenizer.chat_template:
        raise InputError("reward model: the prompts are conversations but its tokenizer has no chat template")
    turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
    messages = [*prompt, *turns]
    if isinstance(response, str) and prompt[-1]["role"] == "assistant":
        messages = [*prompt[:-1], {"role": "assistant", "content": prompt[-1]["content"] + response}]
    if finished:
        ids = list(templates.apply(tokenizer, messages, "reward model", return_dict=True)["input_ids"])
        is_whole = tokenizer.eos_token_id is None or templates.ends_turn(tokenizer, ids)
        return ids if is_whole else [*ids, tokenizer.eos_token_id]
    try:
        ids = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=True)["input_ids"]
    except templates.TEMPLATE_ERRORS:  # the template renders the last turn in another form
        text = templates.render(tokenizer, messages[:-1], "reward model", add_generation_prompt=True)
        ids = tokenizer(text + messages[-1]["content"], add_special_tokens=False)["input_ids"]
    return list(ids)


def with_reader(
    check: Callable[[Mapping, str], None] | None, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Mapping, str], None]:
    """`check` of rows with prompts (see `templates.row_check`) that also raises InputError if a reward model, whose
    `tokenizer` it is, cannot read an answer to the prompt: otherwise the first answers would show it."""

    def check_both(row: Mapping, where: str) -> None:
        if check is not None:
            check(row, where)
        if is_conversation(row["prompt"]):
            try:
                reward_model_tokens(tokenizer, row["prompt"], templates.ANSWER)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None

    check_both.key = [check and check.key, tokenizer.chat_template]
    return check_both


def tell_unread(rows: Iterable[Mapping]) -> None:
    """Says it if the prompts of `rows` have `tools` or `chat_template_kwargs`: reward models are trained without them."""
    if any(map(templates.options_of, rows)):
        say("reward model: it reads the prompts without their `tools` and `chat_template_kwargs`, as it is trained")


def pair_tokens(pair: dict, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`chosen_ids` and `rejected_ids` of a preference pair; answers count as complete unless `chosen_finished` or
    `rejected_finished` is false."""
    return {
        f"{side}_ids": reward_model_tokens(tokenizer, pair["prompt"], pair[side], pair.get(f"{side}_finished") is not False)
        for side in ("chosen", "rejected")
    }


def sampled_response_tokens(
    tokenizer: PreTrainedTokenizerBase,
    source: PreTrainedTokenizerBase,
    prompt: str | list,
    prompt_ids: list[int],
    response_ids: list[int],
    finished: bool,
) -> list[int]:
    """`reward_model_tokens` for a response sampled as token ids. source: the tokenizer of the ids; it is `tokenizer` itself
    if the reward model uses the same tokens.

    If the prompt is token ids, a reward model with the same tokens reads them unchanged, another one reads their text.
    Otherwise the response is read as text: how it was split into tokens is not part of the answer.
    """
    if is_conversation(prompt):
        [response] = answer_texts(source, [response_ids])
        return reward_model_tokens(tokenizer, prompt, response, finished)
    if not isinstance(prompt, str):
        if tokenizer is source:
            return [*prompt_ids, *response_ids]
        prompt = source.decode(prompt_ids, skip_special_tokens=True)
    # Decoded together with its prompt: alone, some tokenizers drop a response's leading space.
    before = source.decode(prompt_ids, skip_special_tokens=True)
    whole = source.decode([*prompt_ids, *response_ids], skip_special_tokens=True)
    alone = source.decode(response_ids, skip_special_tokens=True)
    response = whole[len(before) :] if whole.startswith(before) else alone
    return reward_model_tokens(tokenizer, prompt, response, finished)


@torch.no_grad()
def read_scores(
    model: PreTrainedModel, token_rows: list[list[int]], batch_size: int, progress: Callable[[int], object] | None = None
) -> torch.Tensor:
    """Scores (R,) of token sequences, read at each row's last token; they need not be finite.

    That position comes from the row's length and not from the pad id: a row's own EOS is never taken for padding.
    progress: called with the number of rows of each finished batch.
    Raises InputError for a row longer than the model's context.
    """
    context = context_length(model)
    longest = max(len(row) for row in token_rows)
    if context is not None and longest > context:
        raise InputError(
            f"reward model {reward_name(model)}: prompt and response have {longest} tokens, its context {context}"
        )
    scores = torch.zeros(len(token_rows), device=model.device)
    order = sorted(range(len(token_rows)), key=lambda row: len(token_rows[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = torch.tensor([len(token_rows[row]) for row in rows], device=model.device)
        ids = [torch.tensor(token_rows[row], dtype=torch.long) for row in rows]
        input_ids = pad_sequence(ids, batch_first=True).to(model.device)
        if hasattr(model, "score"):  # causal trunk and linear head, the usual form in transformers
            last = token_hidden_states(model, input_ids)[torch.arange(len(rows), device=model.device), lengths - 1]
            logits = model.score(last)
        else:  # encoders pool at the first token
            mask = torch.arange(input_ids.shape[1], device=model.device)[None, :] < lengths[:, None]
            logits = model(input_ids=input_ids, attention_mask=mask.long()).logits
        scores[torch.tensor(rows, device=model.device)] = logits[:, 0].float()
        if progress:
            progress(len(rows))
    return scores


def score_with_model(model: PreTrainedModel, token_rows: list[list[int]], batch_size: int) -> torch.Tensor:
    """`read_scores`, raising InputError if a score is not finite."""
    scores = read_scores(model, token_rows, batch_size)
    if not torch.isfinite(scores).all():
        row = int((~torch.isfinite(scores)).nonzero()[0])
        raise InputError(f"reward model {reward_name(model)}: gave {scores[row].item()} for row {row} of the rollout")
    return scores


def token_hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, H) of a model's causal trunk."""
    return trunk(model)(input_ids=input_ids, use_cache=False)[0]


def trunk(model: PreTrainedModel) -> nn.Module:
    """A model without its head."""
    found = getattr(model, model.base_model_prefix, None)
    return model.model if found is None else found  # Llama 4's text model is not called as its prefix says


def pool_at_last_token(model: PreTrainedModel | PeftModel) -> None:
    """Makes the model's own forward, as a trainer calls it, read each row's last token by its attention mask (right-padded).

    transformers' heads read the last token that is not the pad id: with pad = EOS that is the one before a row's EOS, so a
    finished response and a truncated one look alike. Encoders, which pool at the first token, are unchanged.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(model, "score"):
        return
    of_tokens, hooks = [], []

    def keep(module, args, scores):
        of_tokens[:] = [scores]

    def listen(module, args):
        # Registered anew for each call, to run after ZeRO-3's hooks on the head, whose outputs gather the weights in the
        # backward pass.
        hooks.append(module.score.register_forward_hook(keep))

    def pool(module, args, kwargs, output):
        hooks.pop().remove()
        scores = of_tokens.pop()
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None:
            last = mask.sum(1) - 1
            output.logits = scores[torch.arange(len(last), device=last.device), last]
        return output

    model.register_forward_pre_hook(listen)
    model.register_forward_hook(pool, with_kwargs=True)


class RewardScorer:
    """Scores of a reward model, loaded from a folder or the Hub; by default on this process's device."""

    def __init__(
        self, model_args: ModelArguments, path: str, place: torch.device | None = None, trust_remote_code: bool = False
    ):
        check_reward_path(path, trust_remote_code=trust_remote_code)
        own = replace(model_args, model_name_or_path=path, tokenizer_name_or_path=None)
        self.tokenizer = load_tokenizer(own, trust_remote_code)
        self.model = load_reward_model(own, self.tokenizer, trust_remote_code).eval()
        if not hasattr(self.model, "hf_device_map"):
            self.model.to(place or device())

    def score(
        self, rows: list[dict], texts: list[str], finished: list[bool] | None = None, batch_size: int = 32
    ) -> list[float]:
        """One score per answer, higher is better; scores of different reward models are not comparable.

        rows: with a column `prompt`. finished: whether the model ended each answer itself; None means all are complete.
        """
        finished = [True] * len(texts) if finished is None else finished
        token_rows = [
            reward_model_tokens(self.tokenizer, row["prompt"], text, whole)
            for row, text, whole in zip(rows, texts, finished, strict=True)
        ]
        return score_with_model(self.model, token_rows, batch_size).tolist()


def uncertainty(samples: list[dict], source: ModelArguments) -> list[float]:
    """The reward model's uncertainty for each sample: the mean of p (1 - p), the variance of a preference, over its answer
    pairs, with p = sigmoid(score difference) (Bradley-Terry).

    At most 0.25, if the model cannot tell the answers apart: there a judgement teaches it most.
    samples: prompt, responses and, from recipes/sample.py, finish_reasons.
    """
    rows = [sample for sample in samples for _ in sample["responses"]]
    texts = [text for sample in samples for text in sample["responses"]]
    finished = [
        reason != "length"
        for sample in samples
        for reason in sample.get("finish_reasons") or [None] * len(sample["responses"])
    ]
    tell_unread(samples)
    scores = iter(RewardScorer(source, source.model_name_or_path).score(rows, texts, finished))
    result = []
    for sample in samples:
        own = torch.tensor([next(scores) for _ in sample["responses"]])
        p = torch.sigmoid(own[:, None] - own[None, :])
        result.append(float((p * (1 - p))[~torch.eye(len(own), dtype=torch.bool)].mean()))
    return result
