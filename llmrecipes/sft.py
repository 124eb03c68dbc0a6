"""What TRL's SFTTrainer lacks for this chain: answers masked by any template, row counts, a cheap loss for small models."""

import copy
import inspect

import torch
import trl
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl.chat_template_utils import clone_chat_template
from trl.data_utils import is_conversational

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.answer_masks import NOTES, tokenize_answers
from llmrecipes.attention import ByDocument, require_borders
from llmrecipes.config import InputError
from llmrecipes.data.preview import RowCounts, count_answers, require_rows
from llmrecipes.data.tables import say
from llmrecipes.models import eos_token_ids, num_embeddings, stop_at
from llmrecipes.templates import complete_template, end_text, leaves_out_bos, set_defaults
from llmrecipes.training import add_loss_alone, within_context

# Below this many bytes of logits and their gradients (12 per token and vocabulary entry), the time cost of TRL's tiled LM
# head outweighs the memory it saves.
CHEAP_LOGITS_BYTES = 1 << 30


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
    works, and each answer ends where generation stops (see answer_masks.py). `template_kwargs` become the defaults of the
    template that `chat_template_path` names.
    """

    def __init__(self, *, model, args: trl.SFTConfig, template_kwargs: dict | None = None, **kwargs):
        self.row_counts: dict[str, RowCounts] = {}
        self._start = model
        # TRL needs {% generation %} marks in the template, or a template that it knows.
        self._answers_only, args.assistant_only_loss = args.assistant_only_loss, False
        self._new_template = args.chat_template_path
        self._template_kwargs = template_kwargs if args.chat_template_path else None
        args = take_template(within_context(args, model), model, kwargs.get("processing_class"), kwargs.get("peft_config"))
        if args.padding_free or args.packing and args.packing_strategy != "wrapped":
            self._borders = "packing" if args.packing else "padding_free", "rows would see each other", True
            require_borders(model, *self._borders)
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
        if self._template_kwargs:  # TRL has set the new template by now
            set_defaults(processing_class, self._template_kwargs)
            self._template_kwargs = None
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
