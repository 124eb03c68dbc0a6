"""What TRL's trainers lack here: row counts, rows in a given order, a cheap SFT loss for small models, weighted pairs."""

import copy
import functools
import inspect
import math
import types
from dataclasses import dataclass

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput
from trl.chat_template_utils import clone_chat_template
from trl.data_utils import is_conversational
from trl.trainer.reward_trainer import DataCollatorForPreference

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.answer_masks import NOTES, end_answers, name_tokens, tokenize_answers
from llmrecipes.attention import ByDocument, require_borders
from llmrecipes.config import InputError
from llmrecipes.data.preview import RowCounts, count_answers, count_pairs, count_scored, require_rows
from llmrecipes.data.tables import say
from llmrecipes.models import context_length, eos_token_ids, num_embeddings, stop_at
from llmrecipes.reward_models.scoring import pair_tokens, pool_at_last_token
from llmrecipes.templates import complete_template, end_text, leaves_out_bos

# Below this many bytes of logits and their gradients (12 per token and vocabulary entry), the time cost of TRL's tiled LM
# head outweighs the memory it saves.
CHEAP_LOGITS_BYTES = 1 << 30


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


def within_context(args: TrainingArguments, model):
    """`args`, or a copy with `max_length` lowered to the model's context, with a message: beyond it, learned positions do
    not exist and other kinds were never trained."""
    context = context_length(model)
    if context is None or args.max_length is None or args.max_length <= context:
        return args
    print(f"max_length: {args.max_length} is beyond the model's context; using {context}", flush=True)
    args = copy.copy(args)
    args.max_length = context
    return args


def take_template(args: trl.SFTConfig, model, tokenizer: PreTrainedTokenizerBase, peft_config):
    """`args` without `chat_template_path` once a model with LoRA has adopted that template and its new tokens, whose rows
    the adapter trains; of a head that is not tied to the embeddings it trains all. TRL would name these modules as Llama
    does, and with tied embeddings have the head trained as well, which PEFT cannot do."""
    path = args.chat_template_path
    if not path or peft_config is None or path.endswith((".jinja", ".j2")):
        return args
    _, _, added = clone_chat_template(model, tokenizer, path)
    if added:
        name = lambda wanted: next(n for n, module in model.named_modules() if module is wanted).rpartition(".")[2]
        peft_config.trainable_token_indices = {name(model.get_input_embeddings()): added}
        if not model.config.get_text_config().tie_word_embeddings:
            whole = [*(peft_config.modules_to_save or ()), name(model.get_output_embeddings())]
            peft_config.modules_to_save = list(dict.fromkeys(whole))
    args = copy.copy(args)
    args.chat_template_path = None
    return args


def without_prompts(model, labels: torch.Tensor) -> dict:
    """Labels (B, T) -> arguments of `model` that skip the logits of leading positions without labels in any row: with a
    short answer after a longer prompt, most of the LM head's cost. On a GPU all are computed: finding the first labelled
    position would synchronise with the device, and compiled code would be recompiled for every length."""
    if labels.device.type != "cpu":
        return {"labels": labels}
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    learned = (labels != -100).any(0)
    first = max(int(learned.int().argmax()) - 1, 0)  # the logits before a token predict it
    if first == 0 or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return {"labels": labels}
    return {"labels": labels[:, first:], "logits_to_keep": labels.shape[1] - first}


class SFTTrainer(ByDocument, trl.SFTTrainer):
    """TRL's SFTTrainer with the plain cross-entropy loss where it is cheap; TRL computes loss, entropy and accuracy in
    tiles.

    Measured on a CPU, a step takes 1.35 times a bare loop with the tiled loss, 1.01 times with the plain one.
    `row_counts` counts rows kept and dropped per data set; InputError if none is left.
    If the loss is on the answers of conversations (`assistant_only_loss`, or prompts with completions), any chat template
    works, and each answer ends where generation stops (see answer_masks.py).
    """

    def __init__(self, *, model, args: trl.SFTConfig, **kwargs):
        self.row_counts: dict[str, RowCounts] = {}
        self._start = model
        # TRL needs {% generation %} marks in the template, or a template that it knows.
        self._answers_only, args.assistant_only_loss = args.assistant_only_loss, False
        self._new_template = args.chat_template_path
        args = take_template(within_context(args, model), model, kwargs.get("processing_class"), kwargs.get("peft_config"))
        if args.padding_free or args.packing and args.packing_strategy != "wrapped":
            key = "packing" if args.packing else "padding_free"
            require_borders(model, key, "rows would see each other", collated=True)
        add_loss_alone(model)
        self._max_length = args.max_length
        if args.padding_free and not args.packing:  # TRL refuses max_length here, although it cuts the rows
            args = copy.copy(args)
            args.max_length = None
        super().__init__(model=model, args=args, **kwargs)
        self.args.max_length = self._max_length
        restore_saved_modules(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name: str) -> Dataset:
        args = copy.copy(args)
        args.max_length = self._max_length
        # Splits a private method of TRL in two: in between, the rows are tokenised but not yet truncated.
        if "labels" not in dataset.column_names:
            whole = copy.copy(args)
            whole.max_length, whole.shuffle_dataset, of = None, False, None
            if self._learns_answers(dataset, args):
                dataset, of = self._tokenize_answers(dataset, processing_class, args, dataset_name)
            else:
                dataset = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
            # These two ways of packing split a longer row instead of cutting it.
            limit = None if packing and args.packing_strategy in ("bfd_split", "wrapped") else args.max_length
            counts = count_answers(dataset, limit, args.truncation_mode == "keep_end", packing, of)
            require_rows(counts, dataset_name)
            self.row_counts[dataset_name] = counts
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _learns_answers(self, dataset: Dataset, args: trl.SFTConfig) -> bool:
        if not isinstance(dataset, Dataset) or "input_ids" in dataset.column_names or not is_conversational(dataset[0]):
            return False
        if "messages" not in dataset.column_names:
            return args.completion_only_loss is not False
        if self._answers_only and args.completion_only_loss is False:
            text = "has no effect on `messages`, whose loss is on the answers alone"
            raise InputError(f"completion_only_loss: false {text}; give `prompt` and `completion`, or leave it out")
        return self._answers_only

    def _tokenize_answers(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: trl.SFTConfig, name: str
    ) -> tuple:
        """(tokenised rows, the row of `dataset` that each comes from)."""
        complete_template(tokenizer, self._new_template or name)
        if not self.row_counts:  # of the first set
            tell_of_template(tokenizer, self._new_template)
        stops = set(eos_token_ids(self._start, tokenizer))
        with PartialState().main_process_first():  # the others read its cache
            rows, notes, ends = tokenize_answers(dataset, tokenizer, stops, name, args.dataset_num_proc)
        for note, count in notes.items():
            if count:
                say(f"{name}: {NOTES[note].format(f'{count:,} of {len(rows):,}', eos=tokenizer.eos_token)}")
        stop_at(self._start, ends, tokenizer, name)
        return rows.remove_columns("row"), rows["row"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        cheap = inputs["input_ids"].numel() * num_embeddings(self.model) * 12 <= CHEAP_LOGITS_BYTES
        plain = self.args.loss_type == "nll" and self.label_smoother is None and not self.aux_loss_enabled
        # Evaluation keeps TRL's loss: it is rare, and its entropy and accuracy are reported.
        if not (cheap and plain and self.model.training):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {
            **inputs,
            "use_cache": False,
            "loss_alone": True,
            **without_prompts(self.accelerator.unwrap_model(model), inputs["labels"]),
        }
        if num_items_in_batch is not None:  # a batch without labels has loss 0, not 0 / 0
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        # Trainer's own loss, bypassing TRL's override.
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


def tell_of_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> None:
    """Warns of a chat template that does not suit the tokenizer: it ends answers in text where a token is meant, or a new
    one (`path`) leaves out the BOS that the tokenizer puts before every text."""
    if text := end_text(tokenizer):
        say(
            f"warning: the chat template ends answers in {text!r}, which this tokenizer has no token for: it is learned as "
            f"text and will stand in every answer; take a template that ends answers in {tokenizer.eos_token}, or as "
            "chat_template_path a folder or Hub id whose tokenizer has that token"
        )
    if path and leaves_out_bos(tokenizer):
        say(
            f"warning: {path}: writes no {tokenizer.bos_token}, which the tokenizer puts before every other text, as the "
            "model has learned it; let the chat template begin with {{ bos_token }}"
        )


def precompute_in_one_process(training: trl.DPOConfig | trl.KTOConfig, num_preview: int) -> None:
    """Turns `precompute_ref_log_probs` off for a preview and, with a message, for several processes: TRL writes them to a
    file in a temporary folder of process 0, but the others look in their own."""
    if training.precompute_ref_log_probs and (num_preview or training.world_size > 1):
        training.precompute_ref_log_probs = False
        if not num_preview:
            say("precompute_ref_log_probs: turned off with several processes; the reference runs on each batch instead")


class DPOTrainer(trl.DPOTrainer):
    """TRL's DPOTrainer; `row_counts` counts rows kept and dropped per data set; InputError if none is left.

    Each answer ends where generation stops, not after the whitespace that a template writes between turns.
    """

    def __init__(self, *, model, args: trl.DPOConfig, **kwargs):
        self.row_counts: dict[str, RowCounts] = {}
        self._start = model
        super().__init__(model=model, args=within_context(args, model), **kwargs)
        restore_saved_modules(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name: str) -> Dataset:
        # Overrides a private method of TRL, the one place where the pairs are tokens and none has been dropped yet.
        warn_of_turns(dataset, ["chosen", "rejected"], dataset_name)
        whole, keep_end = copy.copy(args), args.truncation_mode == "keep_end"
        whole.max_length = None
        dataset = super()._prepare_dataset(dataset, processing_class, whole, dataset_name)
        sides = ["chosen_ids", "rejected_ids"]
        dataset = end_where_generation_stops(
            dataset, sides, self._start, processing_class, dataset_name, args.dataset_num_proc
        )
        counts = count_pairs(dataset, args.max_length, keep_end)
        require_rows(counts, dataset_name)
        self.row_counts[dataset_name] = counts
        if counts.dropped:  # as TRL does: a prompt that fills max_length leaves no room for an answer
            fits = [i for i, ids in enumerate(dataset["prompt_ids"]) if len(ids) < args.max_length]
            dataset = dataset.select(fits)
        return dataset


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


def pair_columns(rows: Dataset | dict[str, Dataset] | None, weighted: bool = False):
    """Preference pairs without the rankings' `margin`, a column that TRL would subtract in the reward model's loss; with
    `weight` scaled to mean 1, if requested; and with the columns that say whether an answer was truncated. A pair without a
    weight counts 1, as rankings' pairs do if their prompt has no other.

    Raises:
        InputError: weights are requested, and no pair has one, or one has a weight that is no number above 0.
    """
    if isinstance(rows, dict):
        return {name: pair_columns(part) for name, part in rows.items()}
    if not weighted:
        return rows and rows.select_columns(_pair_columns(rows))
    weights = list(rows["weight"]) if "weight" in rows.column_names else [None]
    missing = weights.count(None)
    if missing == len(weights) or not all(w is None or isinstance(w, (int, float)) and w > 0 for w in weights):
        raise InputError(
            "weight_pairs: the pairs have no column `weight`, or not numbers above 0 in it; recipes/rank.py writes it, or "
            "set `weight_pairs: false`"
        )
    if missing:
        say(f"weight_pairs: {missing:,} of {len(weights):,} pairs have no `weight`; each counts 1, as a whole prompt")
    weights = [1.0 if weight is None else weight for weight in weights]
    scale = len(weights) / sum(weights)
    pairs = rows.select_columns(_pair_columns(rows))
    return pairs.add_column("weight", [scale * weight for weight in weights])


def _pair_columns(rows: Dataset) -> list[str]:
    known = ("prompt", "chosen", "rejected", "chosen_finished", "rejected_finished")
    return [name for name in known if name in rows.column_names]


@dataclass
class WeightedPairs(DataCollatorForPreference):
    """TRL's batches of pairs, plus their weights (B,) if the rows have them."""

    def torch_call(self, examples: list[dict]) -> dict:
        batch = super().torch_call(examples)
        if "weight" in examples[0]:
            batch["weight"] = torch.tensor([example["weight"] for example in examples], dtype=torch.float)
        return batch


class RewardTrainer(trl.RewardTrainer):
    """TRL's RewardTrainer, feeding pairs as every other reader of a reward model does (`reward_models.scoring`), and
    weighting each pair by its `weight` if the training rows have one.

    The model is Bradley-Terry: P(chosen beats rejected) = sigmoid(r_chosen - r_rejected), so the loss of a pair is
    -log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022, section 3.5). The batch's loss is mean(weight * loss); with
    weights of mean 1 over the data set it estimates the weighted mean without bias. Evaluation is unweighted.

    Raises InputError if no pair fits in `max_length`.
    """

    def __init__(
        self, *, model, args: trl.RewardConfig, train_dataset: Dataset, processing_class: PreTrainedTokenizerBase, **kwargs
    ):
        if "weight" in train_dataset.column_names:
            args.remove_unused_columns = False  # Trainer would drop the weights; the collator takes what it needs
            collator = WeightedPairs(processing_class.pad_token_id, args.pad_to_multiple_of)
            kwargs["data_collator"] = collator
        self.row_counts: dict[str, RowCounts] = {}
        args = within_context(args, model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs)
        restore_saved_modules(self.model)
        pool_at_last_token(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name: str) -> Dataset:
        # Overrides a private method of TRL, the one place where its constructor has set the chat template but not yet
        # tokenised.
        if "chosen_ids" not in dataset.column_names:
            complete_template(processing_class, args.chat_template_path or dataset_name)
            options = {"fn_kwargs": {"tokenizer": processing_class}, "num_proc": args.dataset_num_proc}
            options["new_fingerprint"] = name_tokens(dataset, processing_class, "pairs")
            dataset = dataset.map(pair_tokens, **options)
            counts = count_scored(dataset, args.max_length)
            require_rows(counts, dataset_name)
            self.row_counts[dataset_name] = counts
            if counts.dropped:
                dataset = dataset.select((counts.lengths <= args.max_length).nonzero()[0])
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = inputs.pop("weight", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if weights is not None:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            losses = -torch.nn.functional.logsigmoid(chosen - rejected)
            loss = loss + ((weights - 1) * losses).mean()  # TRL's loss, including centring, weights every pair 1
        return (loss, outputs) if return_outputs else loss


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
