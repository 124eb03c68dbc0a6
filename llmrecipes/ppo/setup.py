"""What PPOTrainer is built from: policy, reference and value model in the right precision, and the checks that models,
tokenizer, reward models and arguments fit together, before anything is sampled."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from llmrecipes.adapters import check_policy, keeps_base
from llmrecipes.config import InputError
from llmrecipes.decoding import check_static, static_remark
from llmrecipes.models import eos_token_ids, num_embeddings
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.policy_value import add_adapter, build_value_head, build_value_model
from llmrecipes.ppo.rewards import Rewards
from llmrecipes.ppo.sharding import FrozenModel, copy_model
from llmrecipes.preflight.best_model import MEASURED
from llmrecipes.sharding import launch_of, refuse_several_gpus
from llmrecipes.tokenizers import leave_out_eos
from llmrecipes.training import disable_dropout

logger = logging.getLogger(__name__)
EVALUATED = MEASURED["num_ppo_epochs"].split()[:-1]  # and scores/<function>


def check_arguments(args: PPOConfig, model: PreTrainedModel, peft_config: PeftConfig | None, given: dict) -> None:
    """Raises InputError for combinations that cannot work. given: the trainer's arguments that must not be None."""
    for name, value in given.items():
        if value is None:
            raise InputError(f"{name}: is missing; PPOTrainer needs it")
    if isinstance(model, str):
        raise InputError(f"model: {model!r} is a name; load it first: AutoModelForCausalLM.from_pretrained({model!r})")
    check_policy(model, peft_config)
    refuse_several_gpus("ppo", args)
    if args.offload_frozen_models and launch_of(args)["sharding"] != "none":
        raise InputError(
            "offload_frozen_models: does not work with FSDP or DeepSpeed, which shard frozen models; use "
            "fsdp_offload_params or offload_param_device in the accelerate config"
        )
    if args.cache_implementation == "static":
        if launch_of(args)["sharding"] != "none":
            raise InputError(
                "cache_implementation: static does not work with FSDP or DeepSpeed; leave it out, or use ddp.yaml"
            )
        check_static(model)
        if remark := static_remark(args.device):
            logger.warning(remark)


def check_evaluation(args: PPOConfig, eval_dataset) -> None:
    """Raises InputError if evaluation is requested without evaluation data, or the best model by a metric never measured."""
    for name, off in (("eval_strategy", "no"), ("eval_on_start", False), ("load_best_model_at_end", False)):
        value = getattr(args, name)
        if eval_dataset is None and getattr(value, "value", value) != off:
            raise InputError(f"{name}: there is no evaluation data; give some (eval_dataset), or leave {name} out")
    if args.metric_for_best_model is None:
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    measured = [metric.removeprefix(name) for name in sets if metric.startswith(name)]
    if not any(name in EVALUATED or name.startswith("scores/") for name in measured):
        raise InputError(
            f"metric_for_best_model: PPO's evaluations do not measure {metric!r}; choose from "
            f"{', '.join(f'eval_{name}{figure}' for name in sets for figure in EVALUATED)}"
        )


@contextmanager
def cache_kept(*models) -> Iterator[None]:
    """Turns the KV cache in the models' configs back on, which Trainer turns off: a policy saved that way decodes slowly."""
    configs = [model.config for model in models if hasattr(model, "config")]
    # Processors of images and text have none.
    before = [(config, config.use_cache) for config in configs if hasattr(config, "use_cache")]
    yield
    for config, use_cache in before:
        config.use_cache = use_cache


def find_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder or repository that the policy was loaded from."""
    path = getattr(model.config, "_name_or_path", "")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"processing_class: there is no tokenizer next to the policy ({path!r}); pass one") from error
    leave_out_eos(tokenizer, path)
    return tokenizer


def build_models(
    model: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    value_model: PreTrainedModel | None,
    rewards: Rewards,
    peft_config: PeftConfig | None,
    args: PPOConfig,
) -> tuple:
    """(policy, reference or None for "the policy without its adapter", value model or head)."""
    kind = args.value_model or ("shared" if peft_config is not None and value_model is None else "separate")
    if kind == "shared" and value_model is not None:
        raise InputError("value_model: shared has no model of its own; leave out the model given to start from")
    if kind == "shared" and args.value_warmup_rollouts:
        raise InputError("value_warmup_rollouts: it would move a shared trunk, and so the policy; set value_model: separate")
    if peft_config is None:
        train_in_float32(model, "policy", args)
    if kind == "shared":
        value_model = build_value_head(model)
    elif value_model is None:
        reward_model = rewards.model_for_policy_tokens()
        if reward_model is None and getattr(model, "is_quantized", False):
            raise InputError("value_model: separate has nothing to start from, because the policy is quantised; use shared")
        value_model = build_value_model(model, reward_model)
    elif any(value_model is frozen.model for frozen in rewards.models):  # training would change the reward model
        value_model = build_value_model(model, value_model)
    if kind == "separate":
        check_sizes(model, value_model)
        train_in_float32(value_model, "value model", args)
    if ref_model is model:
        ref_model = None
    if ref_model is None and (peft_config is None or not keeps_base(peft_config)):
        ref_model = copy_model(model)
    if args.ref_model_dtype is not None:
        if ref_model is None:
            raise InputError("ref_model_dtype: with an adapter the reference is the policy without it; leave it out")
        ref_model.to(getattr(torch, args.ref_model_dtype))
    if peft_config is not None:
        model = add_adapter(model, peft_config, args.activation_checkpointing)
    if args.disable_dropout:
        for trained in (model, value_model):
            disable_dropout(trained, "drop|jitter")  # the noise of MoE routers too: the first ratio is to be 1
    return model, ref_model and FrozenModel(ref_model), value_model


def check_sizes(policy: PreTrainedModel, value_model: PreTrainedModel) -> None:
    """Raises InputError if the policy can write tokens that the value model has no embedding for."""
    written, known = num_embeddings(policy), num_embeddings(value_model)
    if known < written:
        raise InputError(
            f"value model: has embeddings for {known} tokens, the policy can write {written} (it starts from the reward "
            "model unless one is given); make both the same size (resize_token_embeddings), or set value_model: shared"
        )


def train_in_float32(model: PreTrainedModel, name: str, args: PPOConfig) -> None:
    """Casts the weights to be trained to float32, and logs it. bfloat16 has 8 significant bits: an update below about 1/512
    of a weight is rounded away, and at PPO's learning rates (1e-6 to 1e-5) most are. With bf16: true the arithmetic still
    runs in bfloat16. DeepSpeed keeps float32 copies of its own."""
    kinds = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    if not kinds & {torch.bfloat16, torch.float16} or getattr(model, "is_quantized", False) or args.deepspeed_plugin:
        return
    speed = "" if args.bf16 or args.fp16 else "; set bf16: true to compute in bfloat16 anyway"
    logger.warning("%s: its weights are trained in float32; 16 bits would lose most updates to rounding%s", name, speed)
    model.float()


def end_of_response(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> tuple:
    """(ids of all tokens that end a response, an id to pad with, stopping criterion for stop_strings or None)."""
    ends = eos_token_ids(model, tokenizer)
    if not ends:
        raise InputError("tokenizer: has no end-of-sequence token, so no response could ever end; set eos_token")
    # Pads rows on the right; lengths say which tokens are real, so any id will do.
    pad = next(
        token
        for token in (tokenizer.pad_token_id, *ends, 0)
        if token is not None and token < num_embeddings(model)  # a pad token is often added only to the tokenizer
    )
    if not args.stop_strings:
        return ends, pad, None
    try:
        return ends, pad, StopStringCriteria(tokenizer, args.stop_strings)
    except ValueError as error:
        raise InputError("stop_strings: the tokenizer cannot encode arbitrary text; leave them out") from error
