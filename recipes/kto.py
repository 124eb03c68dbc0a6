"""KTO: preference tuning on single answers labelled good or bad; a pair counts as one of each.

Paper: Ethayarajh et al. 2024 (arXiv 2402.01306).
Launch: accelerate launch recipes/kto.py --config configs/quickstart/kto.yaml
Writes: output_dir, the tuned chat model (or a LoRA adapter with use_peft: true).
"""

from llmrecipes.config import DataArguments, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch


def main(run, data, preview, training, model, watch):
    from llmrecipes.adapters import lora_config
    from llmrecipes.data import load_train_eval
    from llmrecipes.data.preview import report_rows
    from llmrecipes.evaluation.watch import add_watch, load_watch
    from llmrecipes.kto import KTOTrainer, to_labelled
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import load_policy, load_tokenizer, stand_in
    from llmrecipes.resume import run_training
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.templates import require_chat_template, row_check
    from llmrecipes.training import precompute_in_one_process, share_read

    inputs = [model.model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("kto", run, training, (run, data, preview, training, model, watch), inputs)

    tokenizer = load_tokenizer(model, training.trust_remote_code)
    check = row_check(tokenizer)
    watched = load_watch(watch, check)
    shapes = ("unpaired preference", "preference")
    train, held_out = load_train_eval(data, training.seed, shapes, training.per_device_train_batch_size, check)
    train, held_out = to_labelled(train, training.seed), to_labelled(held_out, training.seed)
    if not isinstance(train[0]["completion"], str):
        require_chat_template(tokenizer, model.model_name_or_path)
    load = stand_in if preview.preview else load_policy
    policy = load(model, tokenizer, training.trust_remote_code)
    precompute_in_one_process(training, preview.preview)
    peft_config = None if preview.preview else lora_config(model, policy)
    # With LoRA, the reference is the policy with its adapter disabled.
    reference = None if peft_config else load(model, tokenizer, training.trust_remote_code)

    trainer = use_readable_log(
        KTOTrainer(
            model=policy,
            ref_model=reference,
            args=training,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=peft_config,
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
        made=f"chat model tuned on {used:,} labelled answers{share_read(metrics)}",
        next_steps="recipes/evaluate.py compares it with the model it started from",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        "trl.trainer.kto_config:KTOConfig",
        ModelArguments,
        "llmrecipes.evaluation.watch:WatchArguments",
    )
