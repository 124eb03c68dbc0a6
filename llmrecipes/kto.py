"""What TRL's KTOTrainer lacks here: pairs turned into labelled answers in shuffled order, and row counts."""

from types import SimpleNamespace

import trl
from datasets import Dataset

from llmrecipes.adapters import restore_saved_modules
from llmrecipes.answer_masks import end_answers
from llmrecipes.config import InputError
from llmrecipes.data.preview import RowCounts, count_labelled, require_rows
from llmrecipes.models import eos_token_ids
from llmrecipes.training import disable_dropout, end_where_generation_stops, warn_of_turns, within_context


def to_labelled(rows: Dataset | None, seed: int) -> Dataset | None:
    """Each pair as two rows {"prompt", "completion", "label"}, the chosen answer labelled true and the rejected one false,
    shuffled: KTO takes rows in order, and a batch with only one label has nothing to compare with. Rows that are already
    labelled are shuffled by the mixture."""
    if rows is None or "chosen" not in rows.column_names:
        return rows
    return rows.map(_unpair, batched=True, remove_columns=rows.column_names).shuffle(seed=seed)


def _unpair(batch: dict[str, list]) -> dict[str, list]:
    sides = ("chosen", "rejected")
    found = {
        "prompt": 2 * batch["prompt"],
        "completion": [answer for side in sides for answer in batch[side]],
        "label": [side == "chosen" for side in sides for _ in batch[side]],
    }
    if "chosen_finished" in batch:  # whether an answer was cut: `end_answers`
        found["completion_finished"] = [whole for side in sides for whole in batch[f"{side}_finished"]]
    return found


class KTOTrainer(trl.KTOTrainer):
    """TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv 2402.01306); `row_counts` counts rows kept and dropped per data set.

    Raises InputError if no row is left or all labels are the same.
    """

    def __init__(self, *, model, args: trl.KTOConfig, train_dataset: Dataset, **kwargs):
        self.row_counts: dict[str, RowCounts] = {}
        labels = set(train_dataset["label"])
        if len(labels) < 2:
            raise InputError(f"datasets: every label is {str(labels.pop()).lower()}; KTO learns from good and bad answers")
        self._start = model
        if args.disable_dropout:
            disable_dropout(model)
        super().__init__(model=model, args=within_context(args, model), train_dataset=train_dataset, **kwargs)
        restore_saved_modules(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name: str) -> Dataset:
        # Overrides a private method of TRL, the one place where the rows are tokens.
        warn_of_turns(dataset, ["completion"], dataset_name)
        num_proc = args.dataset_num_proc
        # TRL's filter holds all arguments, whose hash is another in every start: what it made would not be found again.
        used = {key: getattr(args, key) for key in ("dataset_num_proc", "max_length", "per_device_train_batch_size")}
        ready = super()._prepare_dataset(dataset, processing_class, SimpleNamespace(**used), dataset_name)
        ready = end_where_generation_stops(ready, ["completion_ids"], self._start, processing_class, dataset_name, num_proc)
        if "KL_completion_ids" in ready.column_names:  # the same answers after other prompts, rotated by one as in TRL
            if "completion_finished" in ready.column_names:
                turn = lambda whole: {"KL_completion_finished": [whole[-1], *whole[:-1]]}
                options = {"input_columns": "completion_finished", "batched": True}
                ready = ready.map(turn, batch_size=args.per_device_train_batch_size, **options)
            stops = set(eos_token_ids(self._start, processing_class))
            ready, _, _ = end_answers(ready, ["KL_completion_ids"], processing_class, stops, num_proc)
        self.row_counts[dataset_name] = counts = count_labelled(ready, len(dataset), args.max_length)
        require_rows(counts, dataset_name)
        return ready
