"""What TRL's RewardTrainer lacks for this chain: pairs as every reader of a reward model is fed, weights, row counts."""

from dataclasses import dataclass

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.reward_trainer import DataCollatorForPreference

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.answer_masks import name_tokens
from llmrecipes.config import InputError
from llmrecipes.data.preview import RowCounts, count_scored, require_rows
from llmrecipes.data.tables import say
from llmrecipes.reward_models.scoring import pair_tokens, pool_at_last_token
from llmrecipes.templates import complete_template, set_defaults
from llmrecipes.training import disable_dropout, within_context


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

    template_kwargs: defaults of the template that `chat_template_path` names. Raises InputError if no pair fits in
    `max_length`.
    """

    def __init__(
        self,
        *,
        model,
        args: trl.RewardConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        template_kwargs: dict | None = None,
        **kwargs,
    ):
        self._template_kwargs = template_kwargs if args.chat_template_path else None
        if "weight" in train_dataset.column_names:
            args.remove_unused_columns = False  # Trainer would drop the weights; the collator takes what it needs
            collator = WeightedPairs(processing_class.pad_token_id, args.pad_to_multiple_of)
            kwargs["data_collator"] = collator
        self.row_counts: dict[str, RowCounts] = {}
        args = within_context(args, model)
        if args.disable_dropout:
            disable_dropout(model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs)
        restore_saved_modules(self.model)
        pool_at_last_token(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name: str) -> Dataset:
        # Overrides a private method of TRL, the one place where its constructor has set the chat template but not yet
        # tokenised.
        if self._template_kwargs:
            set_defaults(processing_class, self._template_kwargs)
            self._template_kwargs = None
        if "chosen_ids" not in dataset.column_names:
            complete_template(processing_class, args.chat_template_path or dataset_name)
            options = {"fn_kwargs": {"tokenizer": processing_class}, "num_proc": args.dataset_num_proc}
            options["new_fingerprint"] = name_tokens(dataset, processing_class, "pairs")
            dataset = dataset.map(pair_tokens, **options)
            counts = count_scored(dataset, args.max_length)
            require_rows(counts, dataset_name)
            # The training rows come first; a held-out set may be named after a split called train, as local files have it.
            again = dataset_name == "train" and "train" in self.row_counts
            self.row_counts["train (held out)" if again else dataset_name] = counts
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
