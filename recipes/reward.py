"""Reward model: learns from preference pairs to score prompt + answer.

Paper: InstructGPT (arXiv 2203.02155), step 2; Bradley-Terry loss, -log sigmoid(r_chosen - r_rejected).
Launch: accelerate launch recipes/reward.py --config configs/quickstart/reward.yaml
Writes: output_dir, a sequence classifier with one label.
"""

from llmrecipes.config import DataArguments, ModelArguments, RunArguments, launch


def main(run, data, training, model):
    from trl import RewardTrainer, get_peft_config

    from llmrecipes.data import load_by_split, load_train_eval
    from llmrecipes.models import load_reward_model, load_tokenizer, require_chat_template
    from llmrecipes.run import finish_run, start_run
    from llmrecipes.training import evaluate_by_set, pair_columns, readable

    inputs = [model.model_name_or_path, *(s.path for s in data.datasets)]
    state = start_run("reward", run, training, (run, data, training, model), inputs)

    tokenizer = load_tokenizer(model, training.trust_remote_code)
    train, held_out = load_train_eval(data, training.seed, ("preference",), training.per_device_train_batch_size)
    if data.eval_datasets:
        held_out = load_by_split(data.eval_datasets, training.seed, ("preference",))
    if not isinstance(train[0]["chosen"], str):
        require_chat_template(tokenizer, model.model_name_or_path)
    reward_model = load_reward_model(model, tokenizer, training.trust_remote_code)

    model.lora_task_type = "SEQ_CLS"
    trainer = readable(
        RewardTrainer(
            model=reward_model,
            args=training,
            train_dataset=pair_columns(train),
            eval_dataset=pair_columns(held_out),
            processing_class=tokenizer,
            peft_config=get_peft_config(model),
        )
    )
    metrics = trainer.train(resume_from_checkpoint=state.resume_from_checkpoint).metrics
    if held_out:
        metrics |= evaluate_by_set(trainer)
    trainer.save_model()
    trainer.save_state()

    finish_run(
        state,
        metrics,
        made=f"reward model from {len(train):,} pairs",
        next_steps="recipes/ppo.py trains the chat model against it",
    )


if __name__ == "__main__":
    launch(main, RunArguments, DataArguments, "trl.trainer.reward_config:RewardConfig", ModelArguments)
