"""PPO's prompts: tokenised once, checked against the context length, and ordered rollout by rollout."""

import logging
from collections.abc import Iterator, Mapping

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.models import context_length
from llmrecipes.templates import apply, options_of
from llmrecipes.turns import is_conversation

logger = logging.getLogger(__name__)
# Reward functions get values made here under these names, which a column of the same name would hide.
OWN_COLUMNS = ("prompts", "prompt_ids", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")


def add_prompt_ids(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int, overlong: str, name: str) -> Dataset:
    """Adds the column `prompt_ids`; every other column is kept for the reward functions.

    `prompt` may be text, chat messages or token ids. A prompt of more than `longest` tokens is an error or, with
    overlong="drop", is dropped and counted in a warning. Raises InputError naming the data set (`name`) and the row.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"{name}: a {type(dataset).__name__}; expected a datasets.Dataset (load it without streaming)")
    if len(dataset) == 0:
        raise InputError(f"{name}: has no rows; expected prompts")
    if "prompt" not in dataset.column_names:
        raise InputError(f"{name}: has columns {', '.join(dataset.column_names)}; expected a column `prompt`")
    for column in OWN_COLUMNS:
        if column in dataset.column_names:
            raise InputError(
                f"{name}: the column `{column}` has a name that training itself gives to reward functions; rename it, or "
                "leave it out (`columns` of a data source lists those to keep)"
            )
    encoded, kept = [], []
    has_options = {"tools", "chat_template_kwargs"} & set(dataset.column_names)
    for row, prompt in enumerate(dataset["prompt"]):
        options = options_of(dataset[row]) if has_options else {}
        ids = prompt_token_ids(prompt, tokenizer, f"{name}, row {row + 1}", options)
        if len(ids) > longest and overlong == "error":
            raise InputError(
                f"{name}, row {row + 1}: the prompt has {len(ids)} tokens, more than {longest} (the context minus "
                "max_completion_length, or max_prompt_length); shorten it or set overlong_prompts: drop"
            )
        if len(ids) <= longest:
            kept.append(row)
            encoded.append(ids)
    if len(kept) < len(dataset):
        logger.warning("%s: dropped %d prompts of more than %d tokens", name, len(dataset) - len(kept), longest)
        dataset = dataset.select(kept)
    if not kept:
        raise InputError(f"{name}: all prompts are longer than {longest} tokens; nothing is left to train on")
    return dataset.add_column("prompt_ids", encoded)


def prompt_token_ids(
    prompt: str | list, tokenizer: PreTrainedTokenizerBase, where: str, options: Mapping | None = None
) -> list[int]:
    """Token ids of one prompt: text, chat messages (rendered up to the assistant's turn) or token ids (unchanged)."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif is_conversation(prompt):
        if tokenizer.chat_template is None:
            raise InputError(f"{where}: the prompt is a conversation but the tokenizer has no chat template")
        # If the last message is the assistant's, the response continues it.
        continues = prompt[-1]["role"] == "assistant"
        goes_on = {"add_generation_prompt": not continues, "continue_final_message": continues}
        ids = apply(tokenizer, prompt, where, return_dict=True, **goes_on, **(options or {}))["input_ids"]
    elif isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        ids = prompt
    else:
        raise InputError(f"{where}: `prompt` must be text, a list of chat messages or a list of token ids")
    if len(ids) == 0:
        raise InputError(f"{where}: the prompt is empty")
    return list(ids)


class RolloutSampler(Sampler[int]):
    """Orders prompts in rollouts of `rollout_size` responses, `num_generations` per prompt. Each rollout is repeated
    `repeats` times, once for every micro-batch trained on it.

    The repeats keep Trainer's own counting (steps per epoch, skipping on resume) right. The order depends only on the seed
    and the epoch. Prompts left over at the end, too few for a rollout, are skipped in this epoch.
    """

    def __init__(
        self, num_prompts: int, rollout_size: int, repeats: int, shuffle: bool, seed: int, num_generations: int = 1
    ):
        self.num_prompts = num_prompts
        self.rollout_size = rollout_size
        self.num_generations = num_generations
        self.repeats = repeats
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_prompts // (self.rollout_size // self.num_generations) * self.rollout_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.num_prompts))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            order = torch.randperm(self.num_prompts, generator=generator).tolist()
        size = self.rollout_size // self.num_generations
        for start in range(0, self.num_prompts - size + 1, size):
            for _ in range(self.repeats):
                yield from (row for row in order[start : start + size] for _ in range(self.num_generations))


def longest_prompt(model: PreTrainedModel, max_completion_length: int, max_prompt_length: int | None) -> int:
    """The most tokens a prompt may have."""
    limits = [max_prompt_length] if max_prompt_length is not None else []
    context = context_length(model)
    if context is not None:
        limits.append(context - max_completion_length)
    longest = min(limits, default=2**31)
    if longest < 1:
        raise InputError(
            f"max_completion_length: {max_completion_length} leaves no room for a prompt in the context of {context}"
        )
    return longest
