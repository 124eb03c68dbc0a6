"""What rewards the responses of PPO and GRPO: the keys in their YAMLs, and loading what these name."""

from dataclasses import dataclass, field

from llmrecipes.config import ModelArguments, load_function


@dataclass
class RewardArguments:
    """The reward model, functions, or both."""

    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Sequence classifier with one label, with its tokenizer in the same folder."}
    )
    reward_model_dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of the reward model, which is not trained; default: `dtype`.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    reward_functions: list[str] = field(
        default_factory=list,
        metadata={"help": "module:function each, fn(prompts, completions, **columns) -> a number or None each."},
    )


def prompt_check(tokenizer, reward: RewardArguments, trust_remote_code: bool):
    """`templates.row_check` of prompts, with the reward model's own chat template as well as that of the policy's
    `tokenizer`."""
    from llmrecipes.models import load_tokenizer
    from llmrecipes.reward_models.scoring import with_reader
    from llmrecipes.templates import row_check

    check = row_check(tokenizer)
    if not reward.reward_model_name_or_path:
        return check
    own = load_tokenizer(ModelArguments(model_name_or_path=reward.reward_model_name_or_path), trust_remote_code)
    return check if own.chat_template == tokenizer.chat_template else with_reader(check, own)


def load_rewards(reward: RewardArguments, model: ModelArguments, trust_remote_code: bool) -> tuple[list, list]:
    """(the reward model, if any, and the functions; their tokenizers, None for a function).

    Raises:
        InputError: the model is not a reward model, or a function does not exist.
    """
    from llmrecipes.models import load_reward_model, load_tokenizer
    from llmrecipes.reward_models.scoring import check_reward_path

    functions, tokenizers = [], []
    if reward.reward_model_name_or_path:
        check_reward_path(reward.reward_model_name_or_path, trust_remote_code=trust_remote_code)
        source = ModelArguments(
            model_name_or_path=reward.reward_model_name_or_path,
            dtype=reward.reward_model_dtype or model.dtype,
            attn_implementation=model.attn_implementation,
        )
        tokenizers.append(load_tokenizer(source, trust_remote_code))
        functions.append(load_reward_model(source, tokenizers[-1], trust_remote_code))
    for name in reward.reward_functions:
        tokenizers.append(None)
        functions.append(load_function(name, "reward_functions"))
    return functions, tokenizers
