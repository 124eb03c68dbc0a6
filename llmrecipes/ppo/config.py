"""PPOConfig: every argument of PPOTrainer, under the names TRL's PPO, RLOO and GRPO configs use."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from llmrecipes.config import InputError
from llmrecipes.keys.renamed import RENAMES
from llmrecipes.ppo.config_checks import check_combinations, check_ranges, check_refused, check_vllm, settle_batch_sizes


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of PPOTrainer on top of `transformers.TrainingArguments`, all of which apply except those that
    `config_checks` refuses.

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
        default=True, metadata={"help": "All dropout (LoRA's too) off in policy and value model; config.json keeps its own."}
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
        check_refused(self)
        super().__post_init__()
        check_ranges(self)
        settle_batch_sizes(self)
        check_combinations(self)
        if self.use_vllm:
            check_vllm(self)

    @property
    def device(self) -> torch.device:
        """Where the models are. Plain `cpu` when several processes share CPUs: torch.load does not know `cpu:0`."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps made from one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches
