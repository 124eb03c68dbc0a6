"""PPOTrainer: proximal policy optimisation of a language model (arXiv 1707.06347, 2203.02155) on
`transformers.Trainer`.

Trainer's own loop does the stepping, clipping, scheduling, logging, saving and callbacks. PPO changes only the data it is
fed and the loss it minimises: every `steps_per_rollout` optimizer steps `get_batch_samples` makes a rollout
(`experience.py`, steps 1-5), and `compute_loss` is the clipped objective (`objective.py`, step 6).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import TorchDynamoPlugin, gather_object
from datasets import Dataset
from peft import PeftConfig
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from llmrecipes.config import InputError
from llmrecipes.durable import cut_back
from llmrecipes.generation import sample_responses
from llmrecipes.ppo import experience, objective, setup
from llmrecipes.ppo.checkpoint import count_broken, load_models, load_ppo_state, save_models, save_ppo_state
from llmrecipes.ppo.compilation import compile_layers
from llmrecipes.ppo.completions import add_completions, send_completions, training_completions
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.policy_value import PolicyAndValue, check_value_model
from llmrecipes.ppo.prompts import RolloutSampler, add_prompt_ids, longest_prompt
from llmrecipes.ppo.rewards import Rewards
from llmrecipes.ppo.rollout import Rollout, split_rollout
from llmrecipes.ppo.sharding import shard_frozen
from llmrecipes.ppo.vllm_sampler import VLLMSampler
from llmrecipes.reward_models.scoring import RewardFunction, tell_unread
from llmrecipes.sharding import expect_idle_weights, prepare_sharding
from llmrecipes.templates import complete_template

ROLLOUT_METRICS = ("score", "kl", "entropy", "response_length", "eos_rate")


class PPOTrainer(Trainer):
    """Trains `model` for a high score while keeping it close (in KL) to its initial state.

    Args:
        model: the policy, a causal language model. Its initial state is the reference unless `ref_model` is given.
        args: PPOConfig.
        train_dataset, eval_dataset: rows with a column `prompt` (text, chat messages or token ids); the other columns
            are passed to the reward functions.
        processing_class: the policy's tokenizer; default the one in the folder or repository it was loaded from.
        reward_funcs: one, or a list, of: a sequence-classification model with one label; a callable
            `fn(prompts, completions, **columns) -> list[float | None]`.
        reward_processing_classes: the reward models' tokenizers; None is the one in the folder or repository that a reward
            model was loaded from, or the policy's where there is none.
        sampler: `llmrecipes.generation.sample_responses` (default) or a function of its signature, whose responses may also
            have a `token_mask` and `token_rewards` (`generation.Response`); vLLM with `args.use_vllm`.
        value_model: a sequence-classification model with one label over the policy's tokens; default a copy of the first
            reward model that shares the policy's tokenizer, else the policy's trunk with a fresh head. Not with
            `args.value_model` "shared".
        peft_config: trains an adapter on the frozen policy; the policy without the adapter is then the reference.

    Raises InputError for what the user can fix: batch sizes, prompts, tokenizers, reward functions' results.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_funcs: RewardFunction | list[RewardFunction] | None = None,
        sampler: Callable | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        ref_model: PreTrainedModel | None = None,
        value_model: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
    ):
        args = PPOConfig() if args is None else args
        setup.check_arguments(args, model, peft_config, {"train_dataset": train_dataset, "reward_funcs": reward_funcs})
        setup.check_evaluation(args, eval_dataset)
        prepare_sharding(args)
        processing_class = processing_class or setup.find_tokenizer(model)
        complete_template(processing_class, "processing_class")
        self.sampler = sampler or sample_responses
        self.rewards = Rewards(reward_funcs, reward_processing_classes, processing_class, args.reward_weights)
        self.eos_token_ids, self.pad_token_id, self.stopping_criteria = setup.end_of_response(model, processing_class, args)
        longest = longest_prompt(model, args.max_completion_length, args.max_prompt_length)
        if value_model is not None:
            check_value_model(value_model, processing_class, longest + args.max_completion_length)
        models = setup.build_models(model, ref_model, value_model, self.rewards, peft_config, args)
        model, self.ref_model, value_model = models

        self._encode = partial(add_prompt_ids, tokenizer=processing_class, longest=longest, overlong=args.overlong_prompts)
        train_dataset, eval_dataset = self._encode_all(train_dataset, eval_dataset, args)
        if args.total_episodes is not None:
            args.max_steps = -(-args.total_episodes // args.rollout_batch_size) * args.steps_per_rollout
        expect_idle_weights(args, model)
        args.ddp_find_unused_parameters = bool(args.ddp_find_unused_parameters)
        with setup.cache_kept(model, value_model):
            super().__init__(
                model=PolicyAndValue(model, value_model, args.logprob_chunk_size),
                args=args,
                data_collator=list,  # rows stay uncollated: they have columns of every kind
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        # The loss below is a sum over tokens divided by the token count of the whole optimizer step.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        compile_layers(self)
        if not args.offload_frozen_models:
            self.rewards.replace_models(lambda model: shard_frozen(model, self.accelerator))
            self.ref_model = self.ref_model and shard_frozen(self.ref_model, self.accelerator)
        if args.use_vllm:
            self.sampler = VLLMSampler(self.model.policy, args, self.accelerator, processing_class)
        experience.check_sampler(self)
        self.kl_coef = args.kl_coef
        self._start_counting()

    def _build_accelerator_args(self, **kwargs) -> dict:
        # `compile_layers` compiles; accelerate would wrap the whole module.
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def _start_counting(self) -> None:
        self._rollout: Rollout | None = None
        self.step_kl: list[torch.Tensor] = []  # (sum, count) of approx_kl in each micro-batch of an optimizer step
        self._metrics: dict[str, list] = {}  # name -> [sum, count] since the last log
        self.last_rollout_metrics: dict[str, float] = {}  # those last logged
        self.rollout_completions: list[dict] = []  # of the latest rollout, until they are logged
        self.unsent_completions: list[tuple] = []

    def _encode_all(self, train_dataset, eval_dataset, args: PPOConfig) -> tuple:
        train_dataset = self._encode(train_dataset, name="training prompts")
        if self.rewards.models and {"tools", "chat_template_kwargs"} & set(train_dataset.column_names):
            tell_unread(train_dataset)
        needed = args.rollout_batch_size // args.num_generations
        if len(train_dataset) < needed:
            raise InputError(
                f"training prompts: {len(train_dataset)} are fewer than one rollout of {needed}; "
                "add prompts or lower rollout_batch_size (or the batch sizes it comes from)"
            )
        if isinstance(eval_dataset, dict):
            given = ((name, data) for name, data in eval_dataset.items() if data is not None)
            eval_dataset = {name: self._encode(data, name=f"{name} prompts") for name, data in given}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, name="evaluation prompts")
        return train_dataset, eval_dataset

    def train(self, *args, **kwargs):
        # Training may replace the policy's weights at both ends: a checkpoint is loaded, later the best model.
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
            dataset=range(len(self.train_dataset)),  # row numbers: rows are read only when a rollout is made
            description="Training",
            batch_size=self.args.rollout_batch_size // self.args.world_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset=None) -> RolloutSampler:
        args = self.args
        repeats = args.steps_per_rollout * args.gradient_accumulation_steps
        rows, seed = len(self.train_dataset), args.seed if args.data_seed is None else args.data_seed
        return RolloutSampler(rows, args.rollout_batch_size, repeats, args.shuffle_dataset, seed, args.num_generations)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of the next optimizer step and their number of response tokens over all processes."""
        rows = [next(epoch_iterator) for _ in range(num_batches)]
        step = self.state.global_step % self.args.steps_per_rollout
        if step == 0:
            self._rollout = experience.make_rollout(self, self.train_dataset[rows[0]])
        ppo_epoch, minibatch = divmod(step, self.args.num_mini_batches)
        micro_batches = [self._rollout.micro_batch(part) for part in self.split(self._rollout, ppo_epoch)[minibatch]]
        num_tokens = sum(
            batch["response_lengths"].sum() if self._rollout.token_mask is None else batch["token_mask"].sum()
            for batch in micro_batches
        )
        return micro_batches, self.all_reduce(num_tokens).clamp(min=1)

    def generator(self, *key: int, device="cpu") -> torch.Generator:
        """A generator that depends only on the seed and `key`: there is no state to save, and a resumed run draws the same
        numbers as an uninterrupted one."""
        seed = np.random.SeedSequence([self.args.seed, self.args.process_index, *key]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(seed >> 1))

    def split(self, rollout: Rollout, ppo_epoch: int) -> list[list[list[int]]]:
        """[minibatch][micro-batch][row] of one PPO epoch over the rollout."""
        args = self.args
        number = self.state.global_step // args.steps_per_rollout
        lengths = rollout.prompt_lengths + rollout.response_lengths
        generator = self.generator(experience.SPLIT, number, ppo_epoch)
        return split_rollout(lengths, args.num_mini_batches, args.per_device_train_batch_size, generator)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    # ---- Update ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made_here and self.args.value_learning_rate is not None:
            named = (self.model if model is None else model).named_parameters()
            value_weights = [weight for name, weight in named if "value_model." in name]
            objective.set_learning_rate(optimizer, value_weights, self.args.value_learning_rate)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Runs policy and value model in turn if they have separate trunks, so that only one's activations are held."""
        if self._rollout.early_stopped is not None:  # no gradient, so the optimizer changes nothing
            self._record("early_stopped", 1, 1)
            return torch.zeros((), device=self.args.device)
        step = super().training_step
        # FSDP, DeepSpeed and DDP's search for unused parameters or static graph expect one forward call per step: DDP would
        # mark the value model as unused in the policy's call, and would not reduce its gradients.
        by_ddp = self.args.ddp_find_unused_parameters or self.args.ddp_static_graph
        in_one = self.is_fsdp_enabled or self.is_deepspeed_enabled or by_ddp
        if self.model.shares_trunk or in_one:
            loss = step(model, inputs, num_items_in_batch)
        else:
            loss = sum(step(model, inputs | {"part": part}, num_items_in_batch) for part in ("policy", "value"))
        if self.value_warms_up:
            for weight in self.model.policy.parameters():
                weight.grad = None  # momentum and weight decay would move it even with a zero gradient
        if self.args.early_stop_kl is not None:
            objective.stop_early(self)
        return loss

    @property
    def value_warms_up(self) -> bool:
        """Whether only the value model is trained in this step (value_warmup_rollouts)."""
        return self.state.global_step // self.args.steps_per_rollout < self.args.value_warmup_rollouts

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """6. The clipped objective, averaged over the response tokens of the whole optimizer step. inputs["part"]: only
        that model's terms."""
        total, outputs = objective.loss_sum(self, model, inputs)
        # DDP and FSDP average gradients over processes; multiplying by their number gives the sum.
        loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        # A hook of Trainer between gradient clipping and the optimizer's step: gradients that are not finite must not reach
        # the weights. In fp16 they occur now and then, and the loss scaler skips such a step.
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and self.accelerator.mixed_precision != "fp16":
            whole = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            self.check_finite(torch.as_tensor(whole, device=self.args.device), "the gradient")
        return grad_norm

    def check_finite(self, tensor: torch.Tensor, what: str) -> None:
        if not torch.isfinite(tensor).all():
            raise self.not_finite(what)

    def not_finite(self, what: str) -> InputError:
        return InputError(
            f"PPO step {self.state.global_step}: {what} is not finite; the last checkpoint in {self.args.output_dir}, if "
            "there is one, is kept. Lower learning_rate, raise kl_coef, or set score_clip"
        )

    # ---- Evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """As Trainer's; `eval_dataset` needs the same columns as the data sets given to the trainer."""
        own = [
            self.train_dataset,
            *(self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]),
        ]
        if not isinstance(eval_dataset, (str, dict, type(None))) and not any(eval_dataset is data for data in own):
            eval_dataset = self._encode(eval_dataset, name="evaluation prompts")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not self.accelerator._models:
            raise InputError("evaluate(): does not work before train() under FSDP or DeepSpeed; set eval_on_start")
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        return experience.evaluate_policy(self, dataloader, metric_key_prefix)

    # ---- Logging ----

    def _record(self, name: str, total, count) -> None:
        """Adds to the sum and count whose quotient is logged next."""
        entry = self._metrics.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    @property
    def num_episodes(self) -> int:
        """Responses sampled for training so far, over all processes."""
        return -(-self.state.global_step // self.args.steps_per_rollout) * self.args.rollout_batch_size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:  # a training log line; evaluation brings its own figures
            # Only some processes may have what a reward function logs.
            names = list(dict.fromkeys(gather_object(list(self._metrics))))
            entries = [self._metrics.get(name, (0.0, 0.0)) for name in names]
            parts = [torch.as_tensor(part).float().cpu() for entry in entries for part in entry]
            totals = self.all_reduce(torch.stack(parts).to(self.args.device)).view(-1, 2).tolist()
            averages = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
            if "score" in averages:  # only if a rollout was made since the last log
                self.last_rollout_metrics = {name: averages[name] for name in ROLLOUT_METRICS}
            logs |= averages | {"num_episodes": self.num_episodes}
            self._metrics.clear()
        super().log(logs, start_time)
        if self.rollout_completions and self.is_world_process_zero():
            add_completions(self.rollout_completions, self.args, self.state.global_step)
            self.unsent_completions.append((self.rollout_completions, self.args, self.state.global_step, "train"))
        self.rollout_completions = []
        for completions in self.unsent_completions:  # by now the trackers' runs are open
            send_completions(*completions)
        self.unsent_completions.clear()

    # ---- Saving and resuming ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Checked before a checkpoint is written, so that a broken one never replaces a good one.
        broken = torch.tensor(float(count_broken(self.model)), device=self.args.device)
        # Only shards differ; whole weights may be saved by one process alone.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            broken = self.all_reduce(broken)
        if broken > 0:
            raise self.not_finite("a weight")
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
        if self.is_fsdp_enabled:  # DeepSpeed loads its checkpoints elsewhere
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_models(self.model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled:
            file = Path(checkpoint, OPTIMIZER_NAME_BIN if self.is_fsdp_enabled else OPTIMIZER_NAME)
            if not file.is_file():  # Trainer would silently start with a new optimizer
                raise InputError(f"{file}: is missing; resume under the launch config that wrote the checkpoint")
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.kl_coef, self._rollout = load_ppo_state(checkpoint, self.args)
            if self.is_world_process_zero():
                step = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
                cut_back(training_completions(self.args), step)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_models(self.model, self.state.best_model_checkpoint)
