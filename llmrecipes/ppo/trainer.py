"""PPOTrainer: proximal policy optimisation of a language model (arXiv 1707.06347, 2203.02155) on
`transformers.Trainer`.

Trainer's own loop does the stepping, clipping, scheduling, logging, saving and callbacks. PPO is what it is fed and
what it minimises: every `steps_per_rollout` optimizer steps `get_batch_samples` makes a rollout (`_make_rollout`,
steps 1-5) and `compute_loss` is the clipped objective (step 6).
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN
from transformers.trainer_utils import EvalLoopOutput

from llmrecipes.adapters import check_policy, keeps_base
from llmrecipes.config import InputError
from llmrecipes.generation import NotFiniteError
from llmrecipes.models import eos_token_ids, num_embeddings
from llmrecipes.ppo.checkpoint import count_broken, load_models, load_ppo_state, save_models, save_ppo_state
from llmrecipes.ppo.completions import completion_table, send_completions, write_completions
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.losses import (
    adapt_kl_coef,
    adjust_scores,
    apply_missing_eos_penalty,
    generalized_advantage_estimate,
    importance_sampling_ratio,
    kl_estimate,
    kl_loss,
    policy_loss,
    response_mask,
    shape_rewards,
    value_loss,
    whiten,
)
from llmrecipes.ppo.policy_value import (
    PolicyAndValue,
    add_adapter,
    build_value_head,
    build_value_model,
    causal_lm,
    check_value_model,
    disable_dropout,
)
from llmrecipes.ppo.prompts import RolloutSampler, encode_prompts, longest_prompt
from llmrecipes.ppo.rewards import Rewards
from llmrecipes.ppo.rollout import (
    MODEL_INPUTS,
    Rollout,
    explained_variance,
    forward_rollout,
    mismatch_statistics,
    row_statistics,
    split_rollout,
)
from llmrecipes.ppo.sharding import (
    FrozenModel,
    copy_model,
    run_within,
    shard_frozen,
    whole_weights,
)
from llmrecipes.ppo.vllm_sampler import VLLMSampler
from llmrecipes.reward_models.scoring import RewardFunction
from llmrecipes.sharding import launch_of, prepare_sharding

SAMPLE, SPLIT, EVALUATE = range(3)  # what a random generator is for
ROLLOUT_METRICS = ("score", "kl", "entropy", "response_length", "eos_rate")


class PPOTrainer(Trainer):
    """Trains `model` to earn a high score while staying close (in KL) to what it was.

    Args:
        model: the policy, a causal language model. Its initial state is the reference unless `ref_model` is given.
        args: PPOConfig.
        train_dataset, eval_dataset: rows with a column `prompt` (text, chat messages or token ids); the other columns
            are passed to the reward functions.
        processing_class: the policy's tokenizer.
        reward_funcs: one or several of: a sequence-classification model with one label; a callable
            `fn(prompts, completions, **columns) -> list[float]`.
        reward_processing_classes: the reward models' tokenizers; None is the one in the folder or repository that a reward
            model was loaded from, or the policy's where there is none.
        sampler: `llmrecipes.generation.sample_responses` or a function of its signature; vLLM with `args.use_vllm`.
        value_model: a sequence-classification model with one label over the policy's tokens; default a copy of the first
            reward model that shares the policy's tokenizer, else the policy's trunk with a fresh head. Not with
            `args.value_model` "shared".
        peft_config: trains an adapter on the frozen policy, which without the adapter is also the reference.

    Raises InputError for what a user can mend: batch sizes, prompts, tokenizers, reward functions' results.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        reward_funcs: RewardFunction | list[RewardFunction],
        sampler: Callable,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        ref_model: PreTrainedModel | None = None,
        value_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
    ):
        if isinstance(model, str):
            raise InputError(f"model: {model!r} is a name; load it first: AutoModelForCausalLM.from_pretrained({model!r})")
        check_policy(model, peft_config)
        if args.n_gpu > 1:
            raise InputError(f"{args.n_gpu} GPUs in one process: start with `accelerate launch`, one process per GPU")
        prepare_sharding(args)
        if args.offload_frozen_models and launch_of(args)["sharding"] != "none":
            raise InputError(
                "offload_frozen_models: not with FSDP or DeepSpeed, whose frozen models are sharded; use "
                "fsdp_offload_params or offload_param_device in the accelerate config"
            )
        self.sampler = sampler
        self.rewards = Rewards(reward_funcs, reward_processing_classes, processing_class, args.reward_weights)
        self.eos_token_ids = eos_token_ids(model, processing_class)
        if not self.eos_token_ids:
            raise InputError("tokenizer: has no end-of-sequence token, so no response could ever end; set eos_token")
        # Only fills the space behind a row; lengths say what is real, so any id will do.
        self.pad_token_id = next(
            token
            for token in (processing_class.pad_token_id, *self.eos_token_ids, 0)
            if token is not None and token < num_embeddings(model)  # a pad token is often added to a tokenizer alone
        )
        self.stopping_criteria = None
        if args.stop_strings:
            try:
                self.stopping_criteria = StopStringCriteria(processing_class, args.stop_strings)
            except ValueError as error:
                raise InputError("stop_strings: the tokenizer cannot spell arbitrary text; leave them out") from error
        longest = longest_prompt(model, args.max_completion_length, args.max_prompt_length)
        if value_model is not None:
            check_value_model(value_model, processing_class, longest + args.max_completion_length)
        model, self.ref_model, value_model = self._build_models(model, ref_model, value_model, peft_config, args)
        if args.disable_dropout:
            disable_dropout((model, value_model))
        configs = [part.config for part in (model, value_model) if hasattr(part, "config")]
        configs = [config for config in configs if hasattr(config, "use_cache")]  # not that of a text model with an eye
        use_cache = [config.use_cache for config in configs]

        self._encode = partial(encode_prompts, tokenizer=processing_class, longest=longest, overlong=args.overlong_prompts)
        train_dataset = self._encode(train_dataset, name="training prompts")
        if len(train_dataset) < args.rollout_batch_size:
            raise InputError(
                f"training prompts: {len(train_dataset)} are fewer than one rollout of {args.rollout_batch_size}; "
                "add prompts or lower rollout_batch_size (or the batch sizes it comes from)"
            )
        encode_eval = {
            name: self._encode(data, name=f"{name} prompts")
            for name, data in (eval_dataset if isinstance(eval_dataset, dict) else {"evaluation": eval_dataset}).items()
            if data is not None
        }
        if args.total_episodes is not None:
            args.max_steps = -(-args.total_episodes // args.rollout_batch_size) * args.steps_per_rollout
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        super().__init__(
            model=PolicyAndValue(model, value_model, args.logprob_chunk_size),
            args=args,
            data_collator=_as_list,
            train_dataset=train_dataset,
            eval_dataset=encode_eval if isinstance(eval_dataset, dict) else encode_eval.get("evaluation"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Trainer switches the KV cache off in the config, and a saved policy would decode slowly for ever after.
        for config, setting in zip(configs, use_cache, strict=True):
            config.use_cache = setting
        # The loss below is a sum over tokens divided by the token count of the whole optimizer step.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        if not args.offload_frozen_models:
            self.rewards.replace_models(lambda model: shard_frozen(model, self.accelerator))
            self.ref_model = self.ref_model and shard_frozen(self.ref_model, self.accelerator)
        if args.use_vllm:
            self.sampler = VLLMSampler(self.model.policy, args, self.accelerator, processing_class)
        self.kl_coef = args.kl_coef
        self._rollout: Rollout | None = None
        self._metrics: dict[str, list] = {}  # name -> [sum, count] since the last log
        self.last_rollout_metrics: dict[str, float] = {}  # as last logged
        self._unsent_completions: tuple | None = None

    def _build_models(self, model, ref_model, value_model, peft_config, args: PPOConfig) -> tuple:
        """(policy, reference or None for "the policy without its adapter", value model or head)."""
        kind = args.value_model or ("shared" if peft_config is not None and value_model is None else "separate")
        if kind == "shared" and value_model is not None:
            raise InputError("value_model: shared has no model of its own; leave out the one that is given to start from")
        if kind == "shared":
            value_model = build_value_head(model)
        elif value_model is None:
            reward_model = self.rewards.model_for_policy_tokens()
            if reward_model is None and getattr(model, "is_quantized", False):
                raise InputError("value_model: separate has nothing to start from, the policy is quantised; use shared")
            value_model = build_value_model(model, reward_model)
        elif any(value_model is frozen.model for frozen in self.rewards.models):  # it would be trained, or nothing at all
            value_model = build_value_model(model, value_model)
        if ref_model is model:
            ref_model = None
        if ref_model is None and (peft_config is None or not keeps_base(peft_config)):
            ref_model = copy_model(model)
        if peft_config is not None:
            model = add_adapter(model, peft_config, args.activation_checkpointing)
        return model, ref_model and FrozenModel(ref_model), value_model

    @contextmanager
    def _on_device(self, *frozen: FrozenModel | None):
        """Frozen models are on the device within; with `offload_frozen_models` only there."""
        moving = [part for part in frozen if part is not None] if self.args.offload_frozen_models else []
        for part in moving:
            part.to(self.args.device)
        try:
            yield
        finally:
            for part in moving:
                part.to("cpu")

    def train(self, *args, **kwargs):
        # Both ends may replace the policy's weights: a checkpoint is loaded, then the best model.
        self._forget_synced_weights()
        output = super().train(*args, **kwargs)
        self._forget_synced_weights()
        return output

    def _forget_synced_weights(self) -> None:
        if self.args.use_vllm:
            self.sampler.forget()

    # ---- Data: one rollout's prompts, repeated for each micro-batch trained from it ----

    def get_train_dataloader(self) -> DataLoader:
        return self._get_dataloader(
            dataset=range(len(self.train_dataset)),  # row numbers: the rows are only read when a rollout is due
            description="Training",
            batch_size=self.args.rollout_batch_size // self.args.world_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset=None) -> RolloutSampler:
        args = self.args
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        rows, seed = len(self.train_dataset), args.seed if args.data_seed is None else args.data_seed
        return RolloutSampler(rows, args.rollout_batch_size, repeats, args.shuffle_dataset, seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of the next optimizer step and their number of response tokens over all processes."""
        rows = [next(epoch_iterator) for _ in range(num_batches)]
        step = self.state.global_step % self.args.steps_per_rollout
        if step == 0:
            self._rollout = self._make_rollout(self.train_dataset[rows[0]])
        ppo_epoch, minibatch = divmod(step, self.args.num_mini_batches)
        micro_batches = [self._rollout.micro_batch(part) for part in self._split(self._rollout, ppo_epoch)[minibatch]]
        num_tokens = sum(batch["response_lengths"].sum() for batch in micro_batches)
        return micro_batches, self._all_reduce(num_tokens)

    def _generator(self, *key: int, device="cpu") -> torch.Generator:
        """A generator that depends on the seed and `key` alone: nothing to save, and a resumed run draws what an
        uninterrupted one does."""
        seed = np.random.SeedSequence([self.args.seed, self.args.process_index, *key]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(seed >> 1))

    def _split(self, rollout: Rollout, ppo_epoch: int) -> list[list[list[int]]]:
        """[minibatch][micro-batch][row] of one pass over the current rollout."""
        args = self.args
        number = self.state.global_step // args.steps_per_rollout
        lengths = rollout.prompt_lengths + rollout.response_lengths
        generator = self._generator(SPLIT, number, ppo_epoch)
        return split_rollout(lengths, args.num_mini_batches, args.per_device_train_batch_size, generator)

    def _all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    # ---- Rollout ----

    @torch.no_grad()
    def _make_rollout(self, rows: dict[str, list]) -> Rollout:
        """Samples responses to the prompts and turns their scores into advantages."""
        args = self.args
        self.model.eval()
        # 1. Sample and score.
        number = self.state.global_step // args.steps_per_rollout
        generator = self._generator(SAMPLE, number, device=args.device)
        rollout, raw_scores, finished, _ = self._sample_and_score(rows, generator, record=self._record)
        scores = adjust_scores(raw_scores.sum(1), args.normalize_scores, args.score_clip, self._all_reduce)
        scores = apply_missing_eos_penalty(scores, finished, args.missing_eos_penalty, args.missing_eos_mode)

        # 2. Log-probabilities under policy (unless the sampler's are taken) and reference, and values; in the micro-batches
        # of the first pass, so that the first probability ratio is exactly 1.
        started = time.perf_counter()
        kl, entropy = self._forward_rollout(rollout, [part for minibatch in self._split(rollout, 0) for part in minibatch])
        self._record("time/rollout_forward", time.perf_counter() - started, 1)
        mask = response_mask(rollout.response_lengths, rollout.logprobs.shape[1])
        self._correct_sampler_mismatch(rollout, mask)

        # 3. Rewards: KL penalty on each token (unless the loss has it), score on the last.
        penalty = self.kl_coef if args.kl_in == "reward" else 0.0
        rewards = shape_rewards(scores, kl, rollout.response_lengths, penalty)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, all_reduce=self._all_reduce)

        # 4. Advantages and returns.
        rollout.advantages, rollout.returns = generalized_advantage_estimate(
            rewards, rollout.values, mask, args.gamma, args.lam
        )
        self._record("explained_variance", explained_variance(rollout.values, rollout.returns, mask), 1)
        if args.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, mask, all_reduce=self._all_reduce)
        self._check_finite(rollout.advantages, "an advantage")

        # 5. Report; adapt the KL coefficient.
        self._record_rollout(rollout, raw_scores, finished, kl, entropy)
        if args.kl_target is not None:
            mean_kl = (self._all_reduce(kl.sum()) / args.rollout_batch_size).item()
            self.kl_coef = adapt_kl_coef(self.kl_coef, mean_kl, args.kl_target, args.rollout_batch_size, args.kl_horizon)
        return rollout

    def _sample_and_score(
        self, rows: dict[str, list], generator: torch.Generator, record: Callable = lambda *_: None
    ) -> tuple[Rollout, torch.Tensor, torch.Tensor, list[list[int]]]:
        """Responses to the prompts: (rollout without log-probabilities, scores (R, functions), finished (R,), the
        responses' token ids). record: takes the seconds."""
        args, started = self.args, time.perf_counter()
        if args.use_vllm:
            self.sampler.sync_weights(self.state.global_step)
        with self.accelerator.autocast():
            responses = self._sample(rows["prompt_ids"], generator)
            sampled = time.perf_counter()
            token_ids = [response.token_ids for response in responses]
            finished = [response.finish_reason == "stop" for response in responses]
            with self._on_device(*self.rewards.models):
                size = args.per_device_train_batch_size
                scores = self.rewards.score(rows, token_ids, finished, size, args.device)
        record("time/sample", sampled - started, 1)
        record("time/score", time.perf_counter() - sampled, 1)
        rollout = Rollout.from_responses(rows["prompt_ids"], token_ids, self.pad_token_id, args.device)
        rollout.set_sampling_logprobs([getattr(response, "logprobs", None) for response in responses])
        if args.old_logprobs == "sampler":
            if rollout.sampling_logprobs is None:
                raise InputError(
                    "old_logprobs: sampler needs the log-probabilities of a sampler that tells none; use recompute"
                )
            rollout.logprobs, rollout.sampling_logprobs = rollout.sampling_logprobs.nan_to_num(0.0), None
        return rollout, scores, torch.tensor(finished, device=args.device), token_ids

    def _sample(self, prompts: list[list[int]], generator: torch.Generator) -> list:
        args, policy = self.args, self.model.policy
        sample = partial(
            self.sampler,
            causal_lm(policy),
            prompts,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            batch_size=args.per_device_generation_batch_size,
            generator=generator,
            stopping_criteria=self.stopping_criteria,
            **({"return_logprobs": True} if args.old_logprobs == "sampler" else {}),
        )
        if args.use_vllm:  # whose engine has weights of its own
            return sample()

        def with_whole_weights():
            with whole_weights(policy, self.model_wrapped, self.accelerator):
                return sample()

        try:
            return run_within(self.model, with_whole_weights)
        except NotFiniteError:
            raise self._not_finite("a logit of the policy") from None

    def _forward_rollout(self, rollout: Rollout, micro_batches: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Fills in log-probabilities and values; returns (token KL from the reference, entropy), each (R, T)."""
        with self.accelerator.autocast(), self._on_device(self.ref_model):
            ref_logprobs, entropy = forward_rollout(
                self.model, self.ref_model, rollout, micro_batches, self.args.temperature
            )
        if self.args.kl_in == "loss":
            rollout.ref_logprobs = ref_logprobs
        return kl_estimate(rollout.logprobs, ref_logprobs, self.args.kl_estimator), entropy

    def _correct_sampler_mismatch(self, rollout: Rollout, mask: torch.Tensor) -> None:
        """Weighs the policy loss for what the sampler's log-probabilities, if it told them, differ from the policy's."""
        if rollout.sampling_logprobs is None:
            return
        args, mode = self.args, self.args.vllm_importance_sampling_mode
        rollout.importance_sampling_ratio = importance_sampling_ratio(
            rollout.logprobs, rollout.sampling_logprobs, mask, mode,
            args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max,
        )  # fmt: skip
        for name, entry in mismatch_statistics(rollout, mask, mode, self.accelerator.gather).items():
            self._record(name, *entry)
        rollout.sampling_logprobs = None

    # ---- Update ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Takes a policy and a value model with trunks of their own in turn: only one's activations are held at a time."""
        step = super().training_step
        # FSDP, DeepSpeed and DDP's search for unused parameters take a forward call for all of a step: DDP would count the
        # value model as unused in the policy's, and reduce its gradients no more.
        in_one = self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.ddp_find_unused_parameters
        if self.model.shares_trunk or in_one:
            return step(model, inputs, num_items_in_batch)
        return sum(step(model, inputs | {"part": part}, num_items_in_batch) for part in ("policy", "value"))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """6. Clipped policy loss + vf_coef × clipped value loss (+ kl_coef × KL), per response token of the whole
        optimizer step. inputs["part"]: that model's share alone."""
        args, part = self.args, inputs.get("part")
        if part == "value":
            model = self.model  # DDP expects one forward call for all parameters, and has had it for the policy
        logprobs, _, values = model(**{name: inputs[name] for name in MODEL_INPUTS}, temperature=args.temperature, part=part)
        mask = response_mask(inputs["response_lengths"], inputs["advantages"].shape[1])
        total, sums = 0.0, {}
        if logprobs is not None:
            policy, stats = policy_loss(
                logprobs, inputs["logprobs"], inputs["advantages"], mask, args.cliprange,
                inputs.get("importance_sampling_ratio"),
            )  # fmt: skip
            total += policy
            sums |= {"policy_loss": policy.detach(), **stats}
        if values is not None:
            value, stats = value_loss(values, inputs["values"], inputs["returns"], mask, args.cliprange_value)
            total += args.vf_coef * value
            sums |= {"value_loss": value.detach(), **stats}
        if logprobs is not None and args.kl_in == "loss":
            kl = kl_loss(logprobs, inputs["logprobs"], inputs["ref_logprobs"], mask, args.kl_estimator)
            total += self.kl_coef * kl
            sums["kl_loss"] = kl.detach()
        self._check_finite(total, "the loss")
        for name, figure in sums.items():
            self._record(name, figure, mask.sum())
        # DDP and FSDP average gradients over processes, but the sum over processes is wanted.
        loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"logprobs": logprobs, "values": values}) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        # Trainer's own, overridden because it comes after clipping and before the optimizer's step: gradients that are no
        # numbers must not reach the weights. fp16 meets them now and then and skips such a step by itself.
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and self.accelerator.mixed_precision != "fp16":
            whole = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            self._check_finite(torch.as_tensor(whole, device=self.args.device), "the gradient")
        return grad_norm

    def _check_finite(self, tensor: torch.Tensor, what: str) -> None:
        if not torch.isfinite(tensor).all():
            raise self._not_finite(what)

    def _not_finite(self, what: str) -> InputError:
        return InputError(
            f"PPO step {self.state.global_step}: {what} is not finite; the last checkpoint in {self.args.output_dir}, if "
            "there is one, is kept. Lower learning_rate, raise kl_coef, or set score_clip"
        )

    # ---- Evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """As Trainer's; a data set that is given has the columns of the ones that the trainer was made with."""
        own = [
            self.train_dataset,
            *(self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]),
        ]
        if not isinstance(eval_dataset, (str, dict, type(None))) and not any(eval_dataset is data for data in own):
            eval_dataset = self._encode(eval_dataset, name="evaluation prompts")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Samples a response to each evaluation prompt; reports its mean reward, KL, entropy, length and share of
        EOS."""
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not self.accelerator._models:
            raise InputError("evaluate() before train(): not under FSDP or DeepSpeed; set eval_on_start")
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        # The same draws in every evaluation, so that two of them differ by the policy alone.
        generator = self._generator(EVALUATE, device=self.args.device)
        table, names, completions = [], [], []
        for examples in dataloader:
            rows = {name: [example[name] for example in examples] for name in examples[0]}
            rollout, scores, finished, token_ids = self._sample_and_score(rows, generator)
            order = (rollout.prompt_lengths + rollout.response_lengths).argsort().tolist()
            size = self.args.per_device_eval_batch_size
            kl, entropy = self._forward_rollout(rollout, [order[i : i + size] for i in range(0, len(order), size)])
            columns = row_statistics(rollout, scores.sum(1), finished, kl, entropy)
            columns |= {f"scores/{name}": scores[:, i] for i, name in enumerate(self.rewards.names)}
            names = list(columns)
            figures = torch.stack(list(columns.values()), dim=1)
            table.append(self.accelerator.gather_for_metrics(figures).cpu())
            if self.args.log_completions:
                texts = self.processing_class.batch_decode(token_ids, skip_special_tokens=True)
                part = completion_table(rows["prompt"], texts, names, figures)
                completions += self.accelerator.gather_for_metrics(part, use_gather_object=True)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        table = torch.cat(table)
        metrics = dict(zip(names, table.mean(0).tolist(), strict=True))
        metrics["score_std"] = table[:, names.index("score")].std(correction=0).item()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        if completions and self.is_world_process_zero():
            write_completions(completions, self.args, self.state.global_step, metric_key_prefix)
            self._unsent_completions = completions, self.args, self.state.global_step, metric_key_prefix
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(table))

    # ---- Logging ----

    def _record(self, name: str, total, count) -> None:
        """Adds to the sum and count whose quotient the next log line shows."""
        entry = self._metrics.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    def _record_rollout(self, rollout, raw_scores, finished, kl, entropy) -> None:
        scores = raw_scores.sum(1)
        for name, column in row_statistics(rollout, scores, finished, kl, entropy).items():
            self._record(name, column.sum(), len(column))
        for i, name in enumerate(self.rewards.names):
            self._record(f"scores/{name}", raw_scores[:, i].sum(), len(raw_scores))
        self._record("score_std", self.accelerator.gather(scores).std(correction=0), 1)
        self._record("kl_coef", self.kl_coef, 1)

    @property
    def num_episodes(self) -> int:
        """Responses sampled for training so far, over all processes."""
        return -(-self.state.global_step // self.args.steps_per_rollout) * self.args.rollout_batch_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:  # a training log line; evaluation brings its own figures
            parts = [torch.as_tensor(part).float().cpu() for entry in self._metrics.values() for part in entry]
            totals = self._all_reduce(torch.stack(parts).to(self.args.device)).view(-1, 2).tolist()
            averages = {name: total / count for name, (total, count) in zip(self._metrics, totals, strict=True)}
            if "score" in averages:  # not every step begins a rollout
                self.last_rollout_metrics = {name: averages[name] for name in ROLLOUT_METRICS}
            logs |= averages | {"num_episodes": self.num_episodes}
            self._metrics.clear()
        super().log(logs, start_time)
        if self._unsent_completions:  # only now are the trackers certain to listen
            send_completions(*self._unsent_completions)
            self._unsent_completions = None

    # ---- Saving and resuming ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # What a checkpoint begins with: one that is broken is never written, and so takes no good one's place.
        broken = torch.tensor(float(count_broken(self.model)), device=self.args.device)
        # Only shards differ; whole weights may be saved by one process alone.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            broken = self._all_reduce(broken)
        if broken > 0:
            raise self._not_finite("a weight")
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output_dir = output_dir or self.args.output_dir
        if self.args.should_save:
            save_models(self.model, output_dir, state_dict)
            self.processing_class.save_pretrained(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # makes the folder; trainer_state.json, written later, marks it complete
        unfinished = self.state.global_step % self.args.steps_per_rollout != 0
        save_ppo_state(output_dir, self.args, self.kl_coef, self._rollout if unfinished else None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled:  # DeepSpeed does not come here, it loads by itself
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_models(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled:
            file = Path(checkpoint, OPTIMIZER_NAME_BIN if self.is_fsdp_enabled else OPTIMIZER_NAME)
            if not file.is_file():  # Trainer would begin with a fresh optimizer and not say so
                raise InputError(f"{file}: is missing; resume under the launch config that wrote the checkpoint")
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.kl_coef, self._rollout = load_ppo_state(checkpoint, self.args)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_models(self.model, self.state.best_model_checkpoint)


def _as_list(examples: list) -> list:
    """Collates nothing: rows have columns of every kind."""
    return examples
