"""PPO: trains the chat model for a high reward (from a reward model or functions) while keeping it close to its start.

Paper: InstructGPT (arXiv 2203.02155), step 3; PPO (arXiv 1707.06347); details after arXiv 2403.17031.
Launch: accelerate launch recipes/ppo.py --config configs/quickstart/ppo.yaml
Writes: output_dir, the policy as a plain causal language model (its LoRA adapter with use_peft: true); the value model
in value_model/, or its head in value_head.safetensors.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, InputError, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch
from llmrecipes.reward_models.arguments import RewardArguments, load_rewards, prompt_check


@dataclass
class ValueArguments:
    value_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Initial value model; default: the reward model, else the policy."}
    )


def check_quantised(model, training):
    if not (model.load_in_4bit or model.load_in_8bit):
        return
    if not model.use_peft:
        raise InputError("load_in_4bit, load_in_8bit: quantised weights cannot be trained; add use_peft: true (QLoRA)")
    if training.use_vllm:
        raise InputError("use_vllm: quantised weights cannot be handed to vLLM; drop load_in_4bit or load_in_8bit")


def show_prompts(data, training, model, tokenizer, train, held_out, count):
    """Prints `count` prompts as the policy reads them, then exits; loads no weights."""
    from llmrecipes.data import true_rows
    from llmrecipes.data.preview import count_prompts, report_rows
    from llmrecipes.models import stand_in
    from llmrecipes.ppo.prompts import add_prompt_ids, longest_prompt

    small = stand_in(model, tokenizer, training.trust_remote_code)
    longest = longest_prompt(small, training.max_completion_length, training.max_prompt_length)
    with true_rows(data, training.seed, ("prompt",), training_prompts=train):
        ready = add_prompt_ids(train, tokenizer, longest, training.overlong_prompts, "training prompts")
    report_rows({"train": count_prompts(ready, len(train))}, tokenizer, train, held_out, ready, count)


def load_value_model(value, model, tokenizer, trust_remote_code):
    """The model that the value model starts from; None for PPOTrainer's own choice."""
    from llmrecipes.models import load_reward_model

    path, attention = value.value_model_name_or_path, model.attn_implementation
    source = ModelArguments(model_name_or_path=path, dtype=model.dtype, attn_implementation=attention)
    return load_reward_model(source, tokenizer, trust_remote_code) if path else None


def main(run, data, preview, training, model, reward, value, watch):
    from llmrecipes.adapters import lora_config
    from llmrecipes.data import load_train_eval, true_rows
    from llmrecipes.data.preview import count_prompts, report_rows
    from llmrecipes.evaluation.watch import add_watch, load_watch
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import load_policy, load_tokenizer
    from llmrecipes.ppo import PPOTrainer
    from llmrecipes.resume import run_training
    from llmrecipes.reward_models.scoring import check_reward_path
    from llmrecipes.run import check_run, finish_run, start_run

    check_quantised(model, training)
    if reward.reward_model_name_or_path:
        check_reward_path(reward.reward_model_name_or_path, trust_remote_code=training.trust_remote_code)
    inputs = [model.model_name_or_path, reward.reward_model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("ppo", run, training, (run, data, preview, training, model, reward, value, watch), inputs)

    tokenizer = load_tokenizer(model, training.trust_remote_code)
    check = prompt_check(tokenizer, reward, training.trust_remote_code)
    watched = load_watch(watch, check)
    train, held_out = load_train_eval(data, training.seed, ("prompt",), check=check)
    if preview.preview:
        show_prompts(data, training, model, tokenizer, train, held_out, preview.preview)
    policy = load_policy(model, tokenizer, training.trust_remote_code)

    reward_funcs, reward_tokenizers = load_rewards(reward, model, training.trust_remote_code)
    value_model = load_value_model(value, model, tokenizer, training.trust_remote_code)

    with true_rows(data, training.seed, ("prompt",), training_prompts=train, evaluation_prompts=held_out):
        trainer = use_readable_log(
            PPOTrainer(
                model=policy,
                args=training,
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
                reward_funcs=reward_funcs,
                reward_processing_classes=reward_tokenizers,
                value_model=value_model,
                peft_config=lora_config(model, policy),
            )
        )
    counts = {"train": count_prompts(trainer.train_dataset, len(train))}
    used = report_rows(counts, tokenizer, train, held_out, trainer.train_dataset, preview.preview)
    add_watch(trainer, watched, tokenizer)
    start_run(state)
    metrics = run_training(trainer, state)
    metrics |= trainer.last_rollout_metrics
    if held_out:
        metrics |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    finish_run(
        state,
        metrics,
        made=f"policy after {trainer.num_episodes:,} episodes on {used:,} prompts",
        next_steps="recipes/evaluate.py compares it with the models it came from",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        "llmrecipes.ppo.config:PPOConfig",
        ModelArguments,
        RewardArguments,
        ValueArguments,
        "llmrecipes.evaluation.watch:WatchArguments",
    )
