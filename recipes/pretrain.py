"""Pretraining: next-token prediction on packed documents, from scratch or continued.

Paper: LLaMA (arXiv 2302.13971); Muon: https://kellerjordan.github.io/posts/muon/
Launch: accelerate launch recipes/pretrain.py --config configs/quickstart/pretrain.yaml
Writes: output_dir, a Hugging Face model folder with its tokenizer.
"""

from dataclasses import dataclass, field

from llmrecipes.config import DataArguments, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.parsing import launch


@dataclass
class PretrainArguments:
    model_config: dict | None = field(
        default=None, metadata={"help": "New model: model_type and keys of its config; or give model_name_or_path."}
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens in a block."})
    optimizer: str = field(
        default="adamw", metadata={"help": "adamw (`optim`) or muon + AdamW.", "choices": ["adamw", "muon"]}
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "Learning rate of the hidden matrices."})
    fused_lm_head: bool = field(
        default=False, metadata={"help": "On a GPU: the loss in tiles, for less memory and a second pass through the head."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})


def load_or_build(model, pretrain, tokenizer, preview):
    """The model to continue training, or a new one; for a preview, without weights."""
    from functools import partial

    import torch

    from llmrecipes.config import InputError
    from llmrecipes.models import build_policy, context_length, load_policy, stand_in

    if model.model_name_or_path:
        load = stand_in if preview else partial(load_policy, may_grow=True)
        policy = load(model, tokenizer, pretrain.trust_remote_code)
    elif pretrain.model_config:
        with torch.device("meta" if preview else "cpu"):
            policy = build_policy(pretrain.model_config, tokenizer, attn_implementation=model.attn_implementation)
    else:
        raise InputError("give model_config for a new model, or model_name_or_path to continue pretraining one")
    context = context_length(policy)
    if context and pretrain.max_length > context:
        raise InputError(f"max_length: {pretrain.max_length} is beyond the model's context of {context}")
    return policy


def main(run, data, preview, training, model, pretrain, tokens, watch):
    from llmrecipes.config import InputError
    from llmrecipes.data.preview import count_documents, report_rows
    from llmrecipes.data.tables import say
    from llmrecipes.evaluation.watch import add_watch, load_watch
    from llmrecipes.logs import use_readable_log
    from llmrecipes.models import count_parameters, load_tokenizer
    from llmrecipes.pretraining import PretrainTrainer
    from llmrecipes.resume import run_training
    from llmrecipes.run import check_run, finish_run, start_run
    from llmrecipes.tokens.blocks import collator_for
    from llmrecipes.tokens.corpus import build_blocks, describe, load_corpus
    from llmrecipes.training import language_metrics

    if pretrain.optimizer == "muon" and training.deepspeed_plugin is not None:
        raise InputError(
            "optimizer: muon needs full matrices, which DeepSpeed splits; use `optimizer: adamw`, or FSDP2 "
            "(configs/accelerate/fsdp2.yaml)"
        )
    watched = load_watch(watch)
    inputs = [model.tokenizer_name_or_path, model.model_name_or_path, *(s.path for s in data.datasets)]
    state = check_run("pretrain", run, training, (run, data, preview, training, model, pretrain, tokens, watch), inputs)

    tokenizer = load_tokenizer(model, pretrain.trust_remote_code)
    corpus = load_corpus(data, tokens, tokenizer, training, pretrain.max_length)
    policy = load_or_build(model, pretrain, tokenizer, preview.preview)

    report_rows({"train": count_documents(corpus)}, tokenizer, corpus, corpus.held_out, corpus.blocks, preview.preview)
    collate = collator_for(policy, tokens.reset_attention)
    held_out = corpus.held_out and build_blocks(corpus.held_out, tokenizer, pretrain.max_length, 1, **tokens.reading)
    trainer = use_readable_log(
        PretrainTrainer(
            model=policy,
            args=training,
            train_dataset=corpus.blocks,
            eval_dataset=held_out,
            processing_class=tokenizer,
            data_collator=collate,
            muon_learning_rate=pretrain.muon_learning_rate if pretrain.optimizer == "muon" else None,
            fused_lm_head=pretrain.fused_lm_head,
        )
    )
    add_watch(trainer, watched, tokenizer, chat=False)
    start_run(state)
    metrics = run_training(trainer, state)
    if held_out:
        metrics |= trainer.evaluate()
        metrics |= language_metrics(metrics["eval_loss"], corpus.held_out, tokenizer, tokens.split_special_tokens)
    trainer.save_model()
    trainer.save_state()

    seen = state.manifest["corpus"] = corpus.seen(trainer.state.global_step)
    say(f"read: {describe(seen)}")
    metrics["num_tokens"] = num_tokens = sum(source["tokens"] for source in seen)
    finish_run(
        state,
        metrics,
        made=f"base model of {count_parameters(policy) / 1e6:.2f}M parameters, {num_tokens:,} tokens seen",
        next_steps="recipes/sft.py turns it into a chat model",
    )


if __name__ == "__main__":
    launch(
        main,
        RunArguments,
        DataArguments,
        PreviewArguments,
        "transformers.training_args:TrainingArguments",
        ModelArguments,
        PretrainArguments,
        "llmrecipes.tokens.arguments:TokenArguments",
        "llmrecipes.evaluation.watch:WatchArguments",
    )
