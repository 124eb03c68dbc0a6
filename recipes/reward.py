"""Reward model: trained on preference pairs to score prompt + answer.

Paper: InstructGPT (arXiv 2203.02155), step 2; Bradley-Terry loss, -log sigmoid(r_chosen - r_rejected).
Launch: accelerate launch recipes/reward.py --config configs/quickstart/reward.yaml
Writes: output_dir, a sequence classifier with one label; with held-out pairs health.json and health.md (see health.py).
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class PairArguments:
    weight_pairs: bool | None = field(
        default=None,
        metadata={"help": "Weight pairs by their column `weight`: each prompt counts once. Default: if it exists."},
    )


def main(run, data, preview, pairs, health, training, model):
    from transformers import AutoModelForSequenceClassification

    from llmrecipes.adapters import lora_config
    from llmrecipes.data import load_by_split, load_train_eval
    from llmrecipes.data.preview import report_rows
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import load_reward_model, load_tokenizer, stand_in
    from llmrecipes.resume import run_training
    from llmrecipes.reward_models.health import check_saved_model, summarize
    from llmrecipes.reward_models.trainer import RewardTrainer, pair_columns
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.templates import local_template, require_chat_template, row_check
    from llmrecipes.training import evaluate_by_set, share_read

    inputs = [model.model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("reward", run, training, (run, data, preview, pairs, health, training, model), inputs)

    training.chat_template_path = local_template(training.chat_template_path)
    tokenizer = load_tokenizer(model, training.trust_remote_code, training.chat_template_path)
    check = row_check(tokenizer, training.chat_template_path, model.chat_template_kwargs, shows_tools=False)
    train, held_out = load_train_eval(data, training.seed, ("preference",), training.per_device_train_batch_size, check)
    if data.eval_datasets:
        held_out = load_by_split(data.eval_datasets, training.seed, ("preference",), check)
    if not isinstance(train[0]["chosen"], str) and not training.chat_template_path:
        require_chat_template(tokenizer, model.model_name_or_path)
    weighted = "weight" in train.column_names if pairs.weight_pairs is None else pairs.weight_pairs
    given = (model, tokenizer, training.trust_remote_code)
    reward_model = stand_in(*given, AutoModelForSequenceClassification) if preview.preview else load_reward_model(*given)
    model.lora_task_type = "SEQ_CLS"
    trainer = use_readable_log(
        RewardTrainer(
            model=reward_model,
            args=training,
            train_dataset=pair_columns(train, weighted),
            eval_dataset=pair_columns(held_out),
            processing_class=tokenizer,
            template_kwargs=model.chat_template_kwargs,
            peft_config=None if preview.preview else lora_config(model, reward_model),
        )
    )
    used = report_rows(trainer.row_counts, tokenizer, train, held_out, trainer.train_dataset, preview.preview)
    start_run(state)
    metrics = run_training(trainer, state)
    if held_out:
        metrics |= evaluate_by_set(trainer)
    trainer.save_model()
    trainer.save_state()

    if held_out and health.health_check and state.is_main:
        # Checks the saved model, loaded as PPO will load it; the trained copy is freed.
        del trainer, reward_model
        sets = held_out if isinstance(held_out, dict) else {"held out": held_out}
        metrics |= summarize(check_saved_model(state.output_dir, sets, health, model, training, training.max_length))
    finish_run(
        state,
        metrics,
        made=f"reward model from {used:,} pairs{share_read(metrics)}",
        next_steps="recipes/ppo.py trains the chat model against it",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        PairArguments,
        "llmrecipes.reward_models.health:HealthArguments",
        "trl.trainer.reward_config:RewardConfig",
        ModelArguments,
    )
