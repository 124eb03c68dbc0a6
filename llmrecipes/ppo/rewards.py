"""Scores of responses, from reward models (each with its own tokenizer if it differs) and from Python callables."""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError, as_score
from llmrecipes.data.tables import say
from llmrecipes.generation import answer_texts
from llmrecipes.models import check_vocabulary
from llmrecipes.ppo.sharding import FrozenModel
from llmrecipes.reward_models.scoring import (
    RewardFunction,
    check_reward_model,
    reward_name,
    same_tokenizer,
    sampled_response_tokens,
    score_with_model,
)
from llmrecipes.turns import is_conversation


def check_reward_function(function: object) -> None:
    """Raises InputError unless `function` is a model (not wrapped by PEFT) or another callable."""
    if isinstance(function, PeftModel):
        raise InputError("reward_funcs: a reward model is wrapped by PEFT; pass its merge_and_unload() instead")
    if not callable(function):
        raise InputError(
            f"reward_funcs: {function!r:.80} is neither a model nor a function; load it first: "
            "AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)"
        )


def own_tokenizer(model: PreTrainedModel, policy_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder or repository that a reward model was loaded from; the policy's where there is none."""
    path = model.config._name_or_path
    try:
        own = AutoTokenizer.from_pretrained(path, trust_remote_code=False) if path else policy_tokenizer
    except (OSError, ValueError):
        return policy_tokenizer
    # For a folder without a tokenizer, transformers 5 makes one up that has only a few special tokens.
    return own if set(own.get_vocab()) - set(own.all_special_tokens) else policy_tokenizer


@dataclass
class Reward:
    """A reward function: its name in logs and errors; for a model also its tokenizer, None for any other function, and
    whether it reads the policy's tokens as they are."""

    name: str
    function: Callable
    tokenizer: PreTrainedTokenizerBase | None = None
    reads_policy_tokens: bool = False

    @property
    def is_model(self) -> bool:
        return self.tokenizer is not None


class Rewards:
    """The reward functions of a run, `each` with its tokenizer and name, and their weights."""

    def __init__(
        self,
        functions: RewardFunction | list[RewardFunction],
        tokenizers: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        policy_tokenizer: PreTrainedTokenizerBase,
        weights: list[float] | None,
    ):
        functions = list(functions) if isinstance(functions, (list, tuple)) else [functions]
        for function in functions:
            check_reward_function(function)
        tokenizers = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(functions)
        if not functions:
            raise InputError("reward_funcs: is empty; give a reward model or a reward function")
        if len(tokenizers) != len(functions):
            raise InputError(f"reward_processing_classes: {len(tokenizers)} for {len(functions)} reward functions")
        if weights is not None and len(weights) != len(functions):
            raise InputError(f"reward_weights: {len(weights)} for {len(functions)} reward functions")
        self.policy_tokenizer = policy_tokenizer
        self.weights = torch.tensor(weights or [1.0] * len(functions))
        self._rollouts, self._lowest, self._highest = 0, math.inf, -math.inf
        self.each: list[Reward] = []
        for function, tokenizer in zip(functions, tokenizers, strict=True):
            name = reward_name(function)
            unique = f"{name}_{len(self.each)}" if name in self.names else name
            if isinstance(function, PreTrainedModel):
                tokenizer = own_tokenizer(function, policy_tokenizer) if tokenizer is None else tokenizer
                check_reward_model(function)
                check_vocabulary(function, tokenizer, f"reward model {name}")
                # Compared once and not for every response: vocabularies are large.
                same = same_tokenizer(tokenizer, policy_tokenizer)
                self.each.append(Reward(unique, FrozenModel(function), tokenizer, same))
            else:
                self.each.append(Reward(unique, function))

    @property
    def names(self) -> list[str]:
        return [reward.name for reward in self.each]

    @property
    def models(self) -> list[FrozenModel]:
        """The reward functions that are models."""
        return [reward.function for reward in self.each if reward.is_model]

    def replace_models(self, place: Callable[[FrozenModel], nn.Module]) -> None:
        """Replaces each model by `place(model)`: the model on its device, or its sharded form."""
        for reward in self.each:
            if reward.is_model:
                reward.function = place(reward.function)

    def model_for_policy_tokens(self) -> PreTrainedModel | None:
        """The first reward model that reads the policy's tokens; the value model can start from it."""
        models = (reward.function.model for reward in self.each if reward.reads_policy_tokens)
        return next((model for model in models if hasattr(model, "score")), None)

    def score(
        self,
        rows: dict[str, list],
        completion_ids: list[list[int]],
        finished: list[bool],
        batch_size: int,
        device="cpu",
        offered: dict[str, object] | None = None,
    ) -> torch.Tensor:
        """Raw scores (R, number of functions), on `device`, of responses to `rows` (columns of the prompt data set); NaN
        where a function returned None. offered: further arguments that a function may declare.

        Raises InputError for a row that gets no score from any function.
        """
        texts = answer_texts(self.policy_tokenizer, completion_ids)
        completions = [
            [{"role": "assistant", "content": text}] if is_conversation(prompt) else text
            for prompt, text in zip(rows["prompt"], texts, strict=True)
        ]
        given = rows, completions, completion_ids, finished, batch_size, offered
        scores = torch.stack([self.score_by(reward, *given).to(device) for reward in self.each], dim=1)
        self.require_scores(scores, rows["prompt"], completions)
        return scores

    def require_scores(self, scores: torch.Tensor, prompts: list, completions: list) -> None:
        """Raises InputError for a row of raw scores (R, number of functions) that no function gave a number."""
        for row in scores.isnan().all(1).nonzero().flatten().tolist():
            raise InputError(
                f"reward function {', '.join(self.names)}: row {row} got None, and no other function gives it a number "
                f"(prompt {prompts[row]!r:.80}, response {completions[row]!r:.80})"
            )

    def score_by(
        self,
        reward: Reward,
        rows: dict[str, list],
        completions: list,
        completion_ids: list[list[int]],
        finished: list[bool],
        batch_size: int,
        offered: dict[str, object] | None = None,
    ) -> torch.Tensor:
        """Scores (R,) of one of the functions; arguments as for `score`."""
        prompts = rows["prompt"]
        if reward.is_model:
            source = reward.tokenizer if reward.reads_policy_tokens else self.policy_tokenizer
            token_rows = [
                sampled_response_tokens(reward.tokenizer, source, *row)
                for row in zip(prompts, rows["prompt_ids"], completion_ids, finished, strict=True)
            ]
            return reward.function(score_with_model, token_rows, batch_size)
        columns = {name: rows[name] for name in rows if name not in ("prompt", "prompt_ids")}
        return torch.tensor(score_with_callable(reward.function, prompts, completions, completion_ids, columns, offered))

    def total(self, scores: torch.Tensor) -> torch.Tensor:
        """Raw scores (R, functions) -> weighted sums (R,), NaN counting as 0."""
        return (scores * self.weights.to(scores.device)).nansum(1)

    def tell_if_constant(self, scores: torch.Tensor) -> None:
        """To be called with the raw scores (R, functions) of each rollout: says, at the fourth, if all responses so far got
        the same reward. Training goes on: a reward that is seldom given may come."""
        total = self.total(scores)
        self._rollouts += 1
        self._lowest, self._highest = min(self._lowest, total.min().item()), max(self._highest, total.max().item())
        if self._rollouts == 4 and self._lowest == self._highest:
            say(
                f"warning: reward function {', '.join(self.names)}: every response of the first 4 rollouts got "
                f"{self._lowest:g}, from which nothing is learned; look at the responses, and call the function on one"
            )


def score_with_callable(
    function: Callable,
    prompts: list,
    completions: list,
    completion_ids: list[list[int]],
    columns: dict[str, list],
    offered: dict[str, object] | None = None,
) -> list[float]:
    """Calls `fn(prompts=…, completions=…, completion_ids=…, **columns) -> list of floats`, as TRL's GRPO does; a
    function without `**kwargs` gets only the arguments it declares. Coroutine functions are awaited. None for a row leaves
    it to the other functions and comes back as NaN. offered: further arguments it may declare (`trainer_state`,
    `log_metric`, `log_extra`).

    Raises InputError naming the function and the row for NaN, infinity or a result of the wrong length, and naming the
    function and the argument if the data has no column for a declared argument.
    """
    name = reward_name(function)
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    arguments = (offered or {}) | arguments
    signature, offered = inspect.signature(function), ", ".join(arguments)
    parameters = signature.parameters.values()
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
        arguments = {name: arguments[name] for name in (p.name for p in parameters) if name in arguments}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"reward function {name}: {error}; add that column to the data or give the argument a default (it can have: "
            f"{offered})"
        ) from None
    scores = function(**arguments)
    if inspect.isawaitable(scores):
        scores = _run(scores)
    if isinstance(scores, (str, bytes, Mapping, Set)) or not isinstance(scores, Iterable) or getattr(scores, "ndim", 1) == 0:
        raise InputError(f"reward function {name}: returned {scores!r:.80}; expected a list of {len(prompts)} numbers")
    scores = list(scores)
    if len(scores) != len(prompts):
        raise InputError(f"reward function {name}: returned {len(scores)} scores for {len(prompts)} responses")
    for row, score in enumerate(scores):
        told = f"reward function {name}: row {row}"
        scores[row] = math.nan if score is None else as_score(score, told, prompts[row], completions[row])
    return scores


def _run(scores: Awaitable):
    """The awaited scores. If an event loop is already running, as in a notebook, awaits in a thread with its own loop."""

    async def awaited():
        return await scores

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, awaited()).result()
