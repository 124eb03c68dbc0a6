"""PPOConfig: every argument of PPOTrainer, under the names TRL's PPO, RLOO and GRPO configs use."""

from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from transformers import TrainingArguments

from llmrecipes.config import InputError
from llmrecipes.keys.renamed import RENAMES
from llmrecipes.ppo.compilation import check_compilation

# Arguments of TrainingArguments that PPO does not support: the one allowed value, and why or what to use instead.
REFUSED = {
    "neftune_noise_alpha": (None, "its noise would move the first probability ratio away from 1"),
    "auto_find_batch_size": (False, "a rollout has a fixed size; set per_device_train_batch_size"),
    "label_smoothing_factor": (0.0, "PPO's loss has no labels to smooth"),
    "bf16_full_eval": (False, "evaluations run in the precision of training; set bf16"),
    "fp16_full_eval": (False, "evaluations run in the precision of training; set fp16"),
    "use_liger_kernel": (False, "its fused loss is not PPO's; log-probabilities are computed in chunks anyway"),
    "train_sampling_strategy": ("random", "prompts are ordered by rollouts; shuffle_dataset: false keeps their order"),
}
ABOVE_0 = (
    "max_completion_length",
    "num_ppo_epochs",
    "temperature",
    "cliprange",
    "cliprange_value",
    "kl_horizon",
    "per_device_generation_batch_size",
    "num_generations",
)
ABOVE_0_IF_GIVEN = (
    "num_mini_batches",
    "rollout_batch_size",
    "total_episodes",
    "kl_target",
    "score_clip",
    "logprob_chunk_size",
    "early_stop_kl",
)
AT_LEAST_0 = ("kl_coef", "vf_coef", "value_warmup_rollouts", "num_completions_to_print", "num_rollout_completions")
CHOICES = {
    "kl_estimator": ("k1", "k2", "k3"),
    "missing_eos_mode": ("subtract", "replace"),
    "overlong_prompts": ("error", "drop"),
    "kl_in": ("reward", "loss"),
    "value_model": (None, "separate", "shared"),
    "ref_model_dtype": (None, "float32", "bfloat16", "float16"),
    "torch_compile_backend": (None, "inductor", "aot_eager", "eager"),
    "old_logprobs": ("recompute", "sampler"),
    "cache_implementation": (None, "static"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers", "auto"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of PPOTrainer on top of `transformers.TrainingArguments`, all of which apply except those in REFUSED.

    Batch arithmetic: one optimizer step sees a minibatch of per_device_train_batch_size × gradient_accumulation_steps
    × processes responses. A rollout samples num_mini_batches minibatches of responses and is used num_ppo_epochs
    times, so it lasts num_ppo_epochs × num_mini_batches optimizer steps (the unit of max_steps, logging_steps,
    save_steps, eval_steps).
    """

    # Fields of TrainingArguments with other defaults
    gradient_accumulation_steps: int = field(
        default=8,
        metadata={"help": "Micro-batches in an optimizer step. With all defaults a rollout has 64 responses."},
    )
    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of policy and value model."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Epsilon of Adam (the N+ details' value)."})
    logging_steps: float = field(default=10, metadata={"help": "Log every N optimizer steps."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: extra columns go to the reward functions."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: a loss that is not finite stops the run instead of being hidden."}
    )

    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the layers of all models, once for rows of any length; not for decoding."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' repositories."})

    # Rollout
    max_completion_length: int = field(default=64, metadata={"help": "Maximum new tokens in a response."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens in a prompt; default: the context minus max_completion_length."}
    )
    overlong_prompts: str = field(
        default="error",
        metadata={"help": "What to do with longer prompts: 'error' or 'drop'.", "choices": ["error", "drop"]},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; logprobs are computed at it too."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1.0 is off."})
    top_k: int = field(default=0, metadata={"help": "Sample from the k most likely tokens; 0 is off."})
    stop_strings: list[str] | None = field(
        default=None, metadata={"help": "A response also ends where one of these strings is complete."}
    )
    rollout_batch_size: int | None = field(
        default=None,
        metadata={"help": "Responses per rollout over all processes; default: num_mini_batches minibatches."},
    )
    per_device_generation_batch_size: int = field(default=64, metadata={"help": "Responses decoded at a time."})
    cache_implementation: str | None = field(
        default=None, metadata={"help": "'static': on a GPU each step is replayed as a CUDA graph.", "choices": ["static"]}
    )
    num_generations: int = field(
        default=1, metadata={"help": "Responses to each prompt of a rollout; rollout_batch_size counts responses."}
    )
    total_episodes: int | None = field(
        default=None, metadata={"help": "Responses to sample in all; sets max_steps (rounded up to whole rollouts)."}
    )
    shuffle_dataset: bool = field(default=True, metadata={"help": "Shuffle the prompts again in each pass."})

    # Rollout by vLLM: the arguments of TRL's GRPOConfig and RLOOConfig, with their defaults
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM instead of the built-in decode loop."})
    vllm_mode: str = field(
        default="colocate",
        metadata={
            "help": "'colocate': an engine in each training process, on its GPU; 'server': a `vllm serve` elsewhere.",
            "choices": ["colocate", "server"],
        },
    )
    vllm_model_impl: str = field(
        default="vllm",
        metadata={"help": "Whose model code a colocated engine runs.", "choices": ["vllm", "transformers", "auto"]},
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "A colocated engine frees its memory during the update; waking it takes time."}
    )
    vllm_structured_outputs_regex: str | None = field(
        default=None, metadata={"help": "Responses must match this regular expression."}
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "The server, such as http://localhost:8000; takes precedence over host and port."}
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "The server's host."})  # nosec B104
    vllm_server_port: int = field(default=8000, metadata={"help": "The server's port."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds to wait for the server to be ready."})
    vllm_group_port: int = field(default=51216, metadata={"help": "Port over which the weights are sent to the server."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU's memory that a colocated engine takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Context of a colocated engine in tokens; default: the model's."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Training processes that share one colocated engine."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=True, metadata={"help": "Weight the policy loss by the ratio of the policy's probabilities to vLLM's."}
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={
            "help": "Ratio of each token or of the whole response; clipped to the bounds or set to 0 outside them.",
            "choices": ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
        },
    )
    vllm_importance_sampling_clip_max: float | None = field(default=3.0, metadata={"help": "Upper bound of the ratio."})
    vllm_importance_sampling_clip_min: float | None = field(default=None, metadata={"help": "Lower bound of the ratio."})

    # Reward
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Penalty for a response cut by the length limit (positive lowers the score)."}
    )
    missing_eos_mode: str = field(
        default="subtract",
        metadata={
            "help": "'subtract' the penalty from the score, or 'replace' the score by minus the penalty.",
            "choices": ["subtract", "replace"],
        },
    )
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Leave responses cut by the length limit out of the loss."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function; default 1.0 each."}
    )
    normalize_scores: bool = field(default=False, metadata={"help": "Scale scores to mean 0, std 1 in each rollout."})
    score_clip: float | None = field(default=None, metadata={"help": "Clip scores to ± this value."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty (β)."})
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "KL estimator for logging, for kl_target and, with kl_in: loss, for the penalty. As a reward the "
            "penalty is always k1, the only one whose expected gradient there is that of the KL.",
            "choices": ["k1", "k2", "k3"],
        },
    )
    kl_in: str = field(
        default="reward",
        metadata={
            "help": "Where the KL penalty goes: 'reward' (of each token) or 'loss' (as in GRPO; with an unbiased gradient).",
            "choices": ["reward", "loss"],
        },
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "Target KL per response (nats) that adapts kl_coef; default: kl_coef is fixed."}
    )
    kl_horizon: float = field(default=10_000, metadata={"help": "Episodes over which kl_coef is adapted."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale token rewards to variance 1 before GAE."})

    # Models
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "'separate': a trunk of its own; 'shared': a head on the policy's trunk, which is faster and smaller "
            "but a different algorithm. Default: separate; for a LoRA policy, shared.",
            "choices": ["separate", "shared"],
        },
    )
    ref_model_dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of the frozen reference; default: the policy's, so that the first KL is 0.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )
    offload_frozen_models: bool = field(
        default=False, metadata={"help": "Keep reference and reward models in CPU memory while they are not in use."}
    )
    logprob_chunk_size: int | None = field(
        default=None, metadata={"help": "Response tokens whose logits exist at a time; default: 128 MiB of logits."}
    )
    old_logprobs: str = field(
        default="recompute",
        metadata={
            "help": "Old log-probabilities of the probability ratio. 'recompute': in the micro-batches of training, so that "
            "the first ratio is exactly 1; 'sampler': those of sampling, one forward pass fewer, equal up to rounding.",
            "choices": ["recompute", "sampler"],
        },
    )

    # Update
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int | None = field(
        default=None, metadata={"help": "Minibatches (optimizer steps) in a pass; default 1."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value update."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Initial learning rate of the value model; default: learning_rate."}
    )
    value_warmup_rollouts: int = field(
        default=0, metadata={"help": "Number of first rollouts that train only the value model."}
    )
    early_stop_kl: float | None = field(
        default=None,
        metadata={"help": "Skip the rest of a rollout's optimizer steps once a step's approx_kl exceeds this."},
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "λ of GAE."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Scale advantages to mean 0, variance 1."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "All dropout (LoRA's too) off in policy and value model, and in their configs."}
    )

    # Evaluation
    log_completions: bool = field(
        default=True,
        metadata={"help": "Write the responses of evaluations to output_dir/completions and to wandb or trackio."},
    )
    num_completions_to_print: int = field(default=2, metadata={"help": "Responses that an evaluation prints."})
    num_rollout_completions: int = field(
        default=1,
        metadata={"help": "Responses of the latest rollout that a log line prints and writes to completions/train.jsonl."},
    )

    def __new__(cls, *args, **kwargs):
        for name in kwargs:  # names from GRPO or older releases of TRL
            if name not in cls.__dataclass_fields__ and RENAMES.get(name) in cls.__dataclass_fields__:
                raise InputError(f"{name}: is called {RENAMES[name]} here")
        return super().__new__(cls)

    def __post_init__(self):
        for name, (allowed, reason) in REFUSED.items():
            if getattr(self, name) != allowed:
                raise InputError(f"{name}: {getattr(self, name)!r} is not for PPO ({reason}); leave it out")
        super().__post_init__()
        self._check_ranges()
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns: must be false for PPO, reward functions read the extra columns")
        self._settle_batch_sizes()
        self._check_combinations()
        if self.use_vllm:
            self._check_vllm()

    def _check_ranges(self) -> None:
        for name in ABOVE_0:
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} must be greater than 0")
        for name in ABOVE_0_IF_GIVEN:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} must be greater than 0 (or left out)")
        for name in AT_LEAST_0:
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} must not be below 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: {getattr(self, name)} must lie between 0 and 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(filter(None, allowed))}")

    def _check_combinations(self) -> None:
        if self.rollout_batch_size % self.num_generations:
            raise InputError(
                f"num_generations: {self.num_generations} does not divide a rollout of {self.rollout_batch_size} responses"
            )
        # One rollout changes β by at most the factor 1 ± 0.2 · rollout / horizon (adapt_kl_coef): with a shorter horizon
        # than this, the factor could be negative.
        if self.kl_target is not None and self.kl_horizon < 0.2 * self.rollout_batch_size:
            raise InputError(
                f"kl_horizon: {self.kl_horizon} is less than 0.2 x rollout_batch_size {self.rollout_batch_size}, so kl_coef "
                "could turn negative; use many times a rollout, such as the default of 10000"
            )
        if self.total_episodes is not None and self.max_steps > 0:
            raise InputError("total_episodes: is given with max_steps, and each says how long to train; leave one out")
        if self.early_stop_kl is not None and (self.fp16 or self.deepspeed_plugin):
            raise InputError("early_stop_kl: does not work with fp16 or DeepSpeed, which take no step without a gradient")
        check_compilation(self)

    def _check_vllm(self) -> None:
        if self.old_logprobs == "sampler":
            raise InputError(
                "old_logprobs: sampler is for the built-in decode loop; vLLM's log-probabilities differ by more than "
                "rounding, which vllm_importance_sampling_correction corrects"
            )
        if self.cache_implementation is not None:
            raise InputError("cache_implementation: is for the built-in decode loop; leave it out with use_vllm")
        if find_spec("vllm") is None:
            raise InputError(
                'use_vllm: vLLM is not installed here (pip install "vllm==0.30.0"; the training process needs it in both '
                "modes); or leave use_vllm out"
            )
        url = self.vllm_server_base_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise InputError(f"vllm_server_base_url: {url!r} must begin with http:// or https://")
        size = self.vllm_tensor_parallel_size
        if size < 1 or (self.vllm_mode == "colocate" and self.world_size % size):
            raise InputError(f"vllm_tensor_parallel_size: {size} does not divide the {self.world_size} processes evenly")
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise InputError(
                f"vllm_importance_sampling_clip_min: {low} must be less than vllm_importance_sampling_clip_max {high}"
            )
        if low is None and high is None and self.vllm_importance_sampling_mode.endswith("truncate"):
            raise InputError(
                "vllm_importance_sampling_clip_max: a *_truncate mode needs it or vllm_importance_sampling_clip_min"
            )
        if self.vllm_max_model_length is not None:
            room = self.vllm_max_model_length - self.max_completion_length
            if room < 1:
                raise InputError(
                    f"vllm_max_model_length: {self.vllm_max_model_length} leaves no room for a prompt next to "
                    f"max_completion_length {self.max_completion_length}"
                )
            self.max_prompt_length = min(room, self.max_prompt_length or room)

    def _settle_batch_sizes(self) -> None:
        """Fills in num_mini_batches and rollout_batch_size from each other."""
        minibatch = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.rollout_batch_size is None:
            self.num_mini_batches = self.num_mini_batches or 1
            self.rollout_batch_size = self.num_mini_batches * minibatch
            return
        unit = minibatch * (self.num_mini_batches or 1)
        if self.rollout_batch_size % unit:
            below = self.rollout_batch_size // unit * unit
            nearest = f"{below} or {below + unit}" if below else f"{unit}"
            raise InputError(
                f"rollout_batch_size: {self.rollout_batch_size} is not a multiple of {unit} "
                f"(per_device_train_batch_size {self.per_device_train_batch_size} x gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} x {self.world_size} processes x num_mini_batches "
                f"{self.num_mini_batches or 1}); nearest: {nearest}"
            )
        if self.num_mini_batches is not None and self.rollout_batch_size != unit:
            raise InputError(
                f"rollout_batch_size: {self.rollout_batch_size} is not num_mini_batches {self.num_mini_batches} x "
                f"{minibatch} responses in an optimizer step; give one of the two, or {unit}"
            )
        self.num_mini_batches = self.rollout_batch_size // minibatch

    @property
    def device(self) -> torch.device:
        """Where the models are. Plain `cpu` when several processes share CPUs: torch.load does not know `cpu:0`."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps made from one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches
