"""What TRL's DPOTrainer lacks for this chain: row counts, and answers that end where generation stops."""

import copy

import trl
from datasets import Dataset

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.data.preview import RowCounts, count_pairs, require_rows
from llmrecipes.training import disable_dropout, end_where_generation_stops, warn_of_turns, within_context


class DPOTrainer(trl.DPOTrainer):
    """TRL's DPOTrainer; `row_counts` counts rows kept and dropped per data set; InputError if none is left.

    Each answer ends where generation stops, not after the whitespace that a template writes between turns.
    """

    def __init__(self, *, model, args: trl.DPOConfig, **kwargs):
        self.row_counts: dict[str, RowCounts] = {}
        self._start = model
        if args.disable_dropout:
            disable_dropout(model)
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
