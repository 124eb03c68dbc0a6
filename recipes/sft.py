"""Supervised fine-tuning: the base model learns to answer, with loss on the assistant's tokens only.

Paper: InstructGPT (arXiv 2203.02155), step 1.
Launch: accelerate launch recipes/sft.py --config configs/quickstart/sft.yaml
Writes: output_dir, a chat model (or a LoRA adapter with use_peft: true).
"""

from llmrecipes.config import DataArguments, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch


def main(run, data, preview, training, model, watch):
    from trl.data_utils import is_conversational

    from llmrecipes.adapters import lora_config
    from llmrecipes.data import load_train_eval
    from llmrecipes.data.preview import report_rows
    from llmrecipes.evaluation.watch import add_watch, load_watch
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import load_policy, load_tokenizer, stand_in
    from llmrecipes.resume import run_training
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.sft import SFTTrainer
    from llmrecipes.templates import local_template, require_chat_template, row_check
    from llmrecipes.training import share_read

    inputs = [model.model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("sft", run, training, (run, data, preview, training, model, watch), inputs)

    training.chat_template_path = local_template(training.chat_template_path)
    tokenizer = load_tokenizer(model, training.trust_remote_code, training.chat_template_path)
    check = row_check(tokenizer, training.chat_template_path, model.chat_template_kwargs, tells_special=False)
    watched = load_watch(watch, check)
    train, held_out = load_train_eval(
        data, training.seed, ("messages", "prompt-completion"), training.per_device_train_batch_size, check
    )
    training.assistant_only_loss = "messages" in train.column_names
    if is_conversational(train[0]) and not training.chat_template_path:
        require_chat_template(tokenizer, model.model_name_or_path)
    policy = (stand_in if preview.preview else load_policy)(model, tokenizer, training.trust_remote_code)

    trainer = use_readable_log(
        SFTTrainer(
            model=policy,
            args=training,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            template_kwargs=model.chat_template_kwargs,
            peft_config=None if preview.preview else lora_config(model, policy),
        )
    )
    used = report_rows(trainer.row_counts, tokenizer, train, held_out, trainer.train_dataset, preview.preview)
    add_watch(trainer, watched, tokenizer)
    start_run(state)
    metrics = run_training(trainer, state)
    if held_out:
        metrics |= trainer.evaluate()
    trainer.save_model()
    trainer.save_state()

    finish_run(
        state,
        metrics,
        made=f"chat model from {used:,} demonstrations{share_read(metrics)}",
        next_steps="recipes/sample.py draws answers to rank",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        "trl.trainer.sft_config:SFTConfig",
        ModelArguments,
        "llmrecipes.evaluation.watch:WatchArguments",
    )
