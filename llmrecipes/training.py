"""What several trainers of TRL lack here: context and stop tokens kept, warnings of rows, measures of an evaluation."""

import copy
import functools
import math
import re
import types

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

from llmrecipes.answer_masks import end_answers
from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.models import context_length, eos_token_ids, stop_at


def name_loss(model: torch.nn.Module) -> None:
    """Names the loss of a causal language model where transformers finds none by the class's name (GPT-2's), and takes this
    one. Its warning of that would break compiled code in two, with all logits written out in between; and Trainer would
    divide the loss by all tokens, the first of each row too, which nothing predicts."""
    if getattr(model, "loss_type", "") is None:
        model.loss_type = "ForCausalLM"


def add_loss_alone(model: torch.nn.Module) -> None:
    """Has `model(..., labels=labels, loss_alone=True)` return no logits. Under autocast accelerate makes a float32 copy of
    all that a model returns, and compiled code has to write it out."""
    name_loss(model)
    forward = model.forward.__func__

    @functools.wraps(forward)
    def loss_or_all(self, *args, loss_alone: bool = False, **kwargs):
        outputs = forward(self, *args, **kwargs)
        return CausalLMOutput(loss=outputs.loss) if loss_alone else outputs

    model.forward = types.MethodType(loss_or_all, model)


def disable_dropout(model: torch.nn.Module, names: str = "drop") -> None:
    """Sets every dropout probability of `model` to 0, in its config too, with a message; `save_pretrained` writes the
    model's own values, from which a later stage starts. Architectures keep them in Dropout modules, the only ones that TRL
    turns off, in float attributes (attention of Llama, all of OPT), or read them from the config at each call. names: a
    regular expression found in the names of such attributes."""
    own: list[tuple[PreTrainedConfig, str, float]] = []

    def zero(holder: object) -> None:
        for name, value in vars(holder).items():
            if type(value) is float and value and re.search(names, name):
                setattr(holder, name, 0.0)
                if isinstance(holder, PreTrainedConfig):
                    own.append((holder, name, value))

    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        zero(module)
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            zero(module.config)
            zero(module.config.get_text_config())
    if own:
        was = ", ".join(f"{name} {value:g}" for name, value in {name: value for _, name, value in own}.items())
        say(f"disable_dropout: 0 in this training; the config.json that is saved keeps the model's own: {was}")
        _save_with(model, own)


def _save_with(model: torch.nn.Module, own: list[tuple[PreTrainedConfig, str, float]]) -> None:
    save = model.save_pretrained

    @functools.wraps(save)
    def save_pretrained(*args, **kwargs):
        for config, name, value in own:
            setattr(config, name, value)
        try:
            save(*args, **kwargs)
        finally:
            for config, name, _ in own:
                setattr(config, name, 0.0)

    model.save_pretrained = save_pretrained


def within_context(args: TrainingArguments, model):
    """`args`, or a copy with `max_length` lowered to the model's context, with a message: beyond it, learned positions do
    not exist and other kinds were never trained. InputError for a loss of experts that the model does not have."""
    require_router(args, model)
    context = context_length(model)
    if context is None or args.max_length is None or args.max_length <= context:
        return args
    print(f"max_length: {args.max_length} is beyond the model's context; using {context}", flush=True)
    args = copy.copy(args)
    args.max_length = context
    return args


def require_router(args: TrainingArguments, model) -> None:
    """InputError for `router_aux_loss_coef` with a model that is no mixture of experts."""
    if getattr(args, "router_aux_loss_coef", None) and not hasattr(model.config.get_text_config(), "output_router_logits"):
        raise InputError(
            f"router_aux_loss_coef: {type(model).__name__} is no mixture of experts that returns its router's logits; "
            "leave it out"
        )


def precompute_in_one_process(training: trl.DPOConfig | trl.KTOConfig, num_preview: int) -> None:
    """Turns `precompute_ref_log_probs` off for a preview and, with a message, for several processes: TRL writes them to a
    file in a temporary folder of process 0, but the others look in their own."""
    if training.precompute_ref_log_probs and (num_preview or training.world_size > 1):
        training.precompute_ref_log_probs = False
        if not num_preview:
            say("precompute_ref_log_probs: turned off with several processes; the reference runs on each batch instead")


def warn_of_turns(rows: Dataset, columns: list[str], name: str) -> None:
    """Warns of answers, in `columns`, that hold turns of others than the assistant: TRL's losses of pairs and of labelled
    answers take all of an answer's tokens."""
    if isinstance(rows[0][columns[0]], str):
        return
    answers = rows.select_columns(columns)
    count = sum(any(turn["role"] != "assistant" for turns in row.values() for turn in turns) for row in answers)
    if count:
        say(
            f"warning: {name}: {count:,} of {len(rows):,} rows have turns of the user's or a tool's inside an answer, which "
            "carry loss like the assistant's; end `prompt` with the last turn before the final answer"
        )


def end_where_generation_stops(
    rows: Dataset, columns: list[str], model, tokenizer: PreTrainedTokenizerBase, name: str, num_proc: int | None
) -> Dataset:
    """Tokenised rows whose answers, in `columns`, end at a token at which generation of `model` stops; prints what was
    changed for that."""
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: has no end-of-sequence token, so no answer could ever end; set eos_token")
    with PartialState().main_process_first():
        rows, count, ends = end_answers(rows, columns, tokenizer, set(eos_token_ids(model, tokenizer)), num_proc)
    if count:
        say(
            f"{name}: after {count:,} of {len(columns) * len(rows):,} answers the chat template puts no token that ends "
            f"them; {tokenizer.eos_token} was put there"
        )
    stop_at(model, ends, tokenizer, name)
    return rows


def require_held_out_batch(trainer: Trainer) -> None:
    """InputError where `dataloader_drop_last` leaves nothing of a held-out set, which would not be measured."""
    args, sets = trainer.args, trainer.eval_dataset
    batch = args.per_device_eval_batch_size * args.world_size
    for rows in sets.values() if isinstance(sets, dict) else [sets]:
        if args.dataloader_drop_last and rows is not None and len(rows) < batch:
            raise InputError(
                f"dataloader_drop_last: {len(rows)} held-out rows are fewer than a batch of {batch}, so none would be "
                "measured; lower per_device_eval_batch_size, or leave it out"
            )


def evaluate_by_set(trainer: Trainer) -> dict[str, float]:
    """Metrics on the held-out sets; with several sets as `eval_<set>_<metric>`. Trainer's own evaluation of several sets
    would keep TRL's metrics (accuracy, margin) only for the last one."""
    if not isinstance(trainer.eval_dataset, dict):
        return trainer.evaluate()
    return {
        f"eval_{name}_{metric.removeprefix('eval_')}": value
        for name in trainer.eval_dataset
        for metric, value in trainer.evaluate(name).items()
    }


def share_read(metrics: dict[str, float]) -> str:
    """ ", 0.25 epochs" where a run ended before it had read all its rows, to be put after their number; else nothing."""
    epochs = metrics.get("epoch", 1.0)
    return f", {epochs:.2g} epochs" if round(epochs, 2) < 1 else ""


def language_metrics(
    eval_loss: float, texts: Dataset, tokenizer: PreTrainedTokenizerBase, split_special: bool = True
) -> dict[str, float]:
    """Perplexity per token, and bits per byte = nats per token · tokens per byte / ln 2 (Gao et al. 2020).

    split_special: whether the texts were learned with `split_special_tokens`."""
    num_bytes = sum(len(text.encode()) for text in list(texts["text"]))
    # +1: the EOS that ends each document is predicted too.
    encoded = tokenizer(list(texts["text"]), add_special_tokens=False, split_special_tokens=split_special)
    num_tokens = sum(len(ids) + 1 for ids in encoded["input_ids"])
    return {
        "perplexity": math.exp(eval_loss),
        "bits_per_byte": eval_loss * num_tokens / num_bytes / math.log(2),
    }
