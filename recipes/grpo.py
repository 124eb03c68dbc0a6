"""GRPO: several responses to each prompt, each with the group's mean reward as its baseline; no value model.

Paper: DeepSeekMath (arXiv 2402.03300).
Launch: accelerate launch recipes/grpo.py --config configs/quickstart/grpo.yaml
Writes: output_dir, the policy as a plain causal language model (its LoRA adapter with use_peft: true).
"""

from llmrecipes.config import DataArguments, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch
from llmrecipes.reward_models.arguments import RewardArguments, load_rewards, prompt_check


def main(run, data, preview, training, model, reward, watch):
    from llmrecipes.adapters import lora_config
    from llmrecipes.data import load_train_eval, true_rows
    from llmrecipes.data.preview import report_rows
    from llmrecipes.evaluation.watch import add_watch, load_watch
    from llmrecipes.grpo import GRPOTrainer
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import load_policy, load_tokenizer, stand_in
    from llmrecipes.resume import run_training
    from llmrecipes.reward_models.scoring import check_reward_path
    from llmrecipes.run import check_run, finish_run, start_run

    if reward.reward_model_name_or_path:
        check_reward_path(reward.reward_model_name_or_path, trust_remote_code=training.trust_remote_code)
    inputs = [model.model_name_or_path, reward.reward_model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("grpo", run, training, (run, data, preview, training, model, reward, watch), inputs)

    tokenizer = load_tokenizer(model, training.trust_remote_code)
    check = prompt_check(tokenizer, reward, training.trust_remote_code)
    watched = load_watch(watch, check)
    train, held_out = load_train_eval(data, training.seed, ("prompt",), check=check)
    load = stand_in if preview.preview else load_policy
    policy = load(model, tokenizer, training.trust_remote_code)
    peft_config = None if preview.preview else lora_config(model, policy)
    # With LoRA, the reference is the policy with its adapter disabled.
    reference = load(model, tokenizer, training.trust_remote_code) if training.beta and not peft_config else None
    reward_funcs, reward_tokenizers = [len], None  # a preview computes no rewards
    if not preview.preview:
        reward_funcs, reward_tokenizers = load_rewards(reward, model, training.trust_remote_code)

    with true_rows(data, training.seed, ("prompt",), training_prompts=train, evaluation_prompts=held_out):
        trainer = use_readable_log(
            GRPOTrainer(
                model=policy,
                args=training,
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
                reward_funcs=reward_funcs,
                reward_processing_classes=reward_tokenizers,
                ref_model=reference,
                peft_config=peft_config,
            )
        )
    used = report_rows(trainer.row_counts, tokenizer, train, held_out, trainer.prompts, preview.preview)
    add_watch(trainer, watched, tokenizer)
    start_run(state)
    metrics = run_training(trainer, state)
    metrics |= trainer.last_metrics()
    if held_out:
        metrics |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    finish_run(
        state,
        metrics,
        made=f"policy after {trainer.num_episodes:,} episodes, {training.num_generations} to a prompt, on {used:,} prompts",
        next_steps="recipes/evaluate.py compares it with the models it came from",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        "trl.trainer.grpo_config:GRPOConfig",
        ModelArguments,
        RewardArguments,
        "llmrecipes.evaluation.watch:WatchArguments",
    )
