"""What TRL's GRPOTrainer lacks here: reward models and prompts read as in every other stage, and row counts."""

from functools import partial
from pathlib import Path
from unittest import mock

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import TrackioCallback

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.config import InputError
from llmrecipes.data.preview import RowCounts, count_prompts
from llmrecipes.models import eos_token_ids
from llmrecipes.ppo.prompts import RolloutSampler, add_prompt_ids, longest_prompt, prompt_token_ids
from llmrecipes.ppo.rewards import Reward, Rewards
from llmrecipes.training import disable_dropout, require_router

MEASURED = ("reward", "reward_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio")


class GRPOTrainer(trl.GRPOTrainer):
    """TRL's GRPOTrainer (Shao et al. 2024, arXiv 2402.03300) with PPO's reward models and functions: the same arguments, the
    same reading of a response, the same errors.

    `ref_model` is the reference of the KL term, used if `beta` is above 0 and no adapter is trained. TRL would load it again
    from the path of `model`: at another revision, without the adapters merged into it, or not at all.
    `row_counts` counts prompts kept and dropped; `prompts` are the training prompts with `prompt_ids`.
    Raises InputError for prompts that are malformed, too few for a rollout, or have template options of their own.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: trl.GRPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase,
        reward_funcs: list,
        ref_model: PreTrainedModel | None = None,
        reward_processing_classes: list | None = None,
        **kwargs,
    ):
        require_router(args, model)
        if args.disable_dropout:
            disable_dropout(model)
        rewards = Rewards(reward_funcs, reward_processing_classes, processing_class, args.reward_weights)
        longest = longest_prompt(model, args.max_completion_length, None)
        read = partial(_encode, tokenizer=processing_class, longest=longest)
        self.prompts = read(train_dataset, name="training prompts")
        counts = count_prompts(self.prompts, len(train_dataset), "max_completion_length")
        self.row_counts: dict[str, RowCounts] = {"train": counts}
        needed = args.generation_batch_size // args.num_generations
        if len(self.prompts) < needed:
            raise InputError(
                f"training prompts: {len(self.prompts)} are fewer than the {needed} of one rollout; add prompts or lower "
                "generation_batch_size (or steps_per_generation and the batch sizes it comes from)"
            )
        held_out = eval_dataset and read(eval_dataset, name="evaluation prompts").remove_columns("prompt_ids")
        self._scores: list[torch.Tensor] = []  # (R,) of the functions called so far for a rollout
        self._stops = set(eos_token_ids(model, processing_class))
        with mock.patch("trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: ref_model):
            super().__init__(
                model=model,
                args=args,
                train_dataset=self.prompts.remove_columns("prompt_ids"),
                eval_dataset=held_out,
                processing_class=processing_class,
                reward_funcs=[self._reward(rewards, own) for own in rewards.each],
                **kwargs,
            )
        restore_saved_modules(self.model)
        rewards.replace_models(lambda frozen: frozen.to(self.accelerator.device))

    def _reward(self, rewards: Rewards, own: Reward):
        """One of the reward functions, wrapped in the form that TRL calls: one after the other for each rollout."""

        def reward(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns) -> list[float]:
            rows = {"prompt": prompts, **columns}
            if own.is_model:
                rows["prompt_ids"] = self._tokenize_prompts(prompts)[0]
            finished = [bool(self._stops & set(ids[-1:])) for ids in completion_ids]
            offered = {"trainer_state": trainer_state, "log_metric": log_metric, "log_extra": log_extra}
            size = self.args.per_device_train_batch_size
            scores = rewards.score_by(own, rows, completions, completion_ids, finished, size, offered)
            self._scores = [*(self._scores if own is not rewards.each[0] else []), scores]
            if own is rewards.each[-1]:  # TRL would train on a response without a score, after a warning
                raw_scores = torch.stack([s.cpu() for s in self._scores], dim=1)
                rewards.require_scores(raw_scores, prompts, completions)
                rewards.tell_if_constant(raw_scores)
            return scores.tolist()

        reward.__name__ = own.name
        return reward

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.log_completions:  # TRL makes the folder with the trainer; starting the run clears it
            Path(self.args.output_dir, "completions").mkdir(exist_ok=True)
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        # TRL's profiler logs to trackio, whose run the callback closes when training ends and opens again at the first log.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TrackioCallback):
                callback.on_train_begin(self.args, self.state, self.control, model=self.model)
        return super().evaluate(*args, **kwargs)

    @property
    def num_episodes(self) -> int:
        """Responses sampled for training so far, over all processes."""
        micro_batches = self.state.global_step * self.args.gradient_accumulation_steps
        rollouts = -(-micro_batches // (self.args.steps_per_generation * self.args.num_iterations))
        return rollouts * self.args.generation_batch_size

    def last_metrics(self) -> dict[str, float]:
        """The reward and related metrics, as last logged."""
        logged = next((logs for logs in reversed(self.state.log_history) if "reward" in logs), {})
        return {name: logged[name] for name in MEASURED if name in logged}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RolloutSampler:
        # TRL's sampler draws each epoch's order from the generator state left by earlier epochs, which a resumed run lacks.
        args = self.args
        repeats = args.num_iterations * args.steps_per_generation
        size, seed = args.generation_batch_size, args.seed if args.data_seed is None else args.data_seed
        return RolloutSampler(len(self.prompts), size, repeats, args.shuffle_dataset, seed, args.num_generations)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        # Overrides a private method of TRL, the one place where prompts become tokens; it cannot continue a last assistant
        # turn.
        ids = [prompt_token_ids(prompt, self.processing_class, "prompt", self.chat_template_kwargs) for prompt in prompts]
        return ids, None, {}


def _encode(prompts: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int, name: str) -> Dataset:
    for column in ("tools", "chat_template_kwargs"):
        if column in prompts.column_names:
            raise InputError(
                f"{name}: has a column `{column}`, but GRPO renders all prompts alike; leave it out with "
                "`columns:`, or use recipes/ppo.py"
            )
    return add_prompt_ids(prompts, tokenizer, longest, "drop", name)
