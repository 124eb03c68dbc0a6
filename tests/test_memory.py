"""Out of memory is one line that says what helps; auto_find_batch_size keeps rows per optimizer step, and the run."""

import pytest
import torch
from datasets import Dataset
from training_toys import CONFIG, TEXTS
from transformers import Trainer, TrainingArguments

from llmrecipes.batch_size import train_where_it_fits
from llmrecipes.config import InputError, RunArguments
from llmrecipes.memory import is_out_of_memory, out_of_memory
from llmrecipes.models import build_policy
from llmrecipes.parsing import launch
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collate_blocks
from llmrecipes.tokens.corpus import build_blocks

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)."),
    MemoryError(),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


class Tight(Trainer):
    """Memory ends above `room` rows at a time, from optimizer step `since` on."""

    def __init__(self, *args, room, since=0, **kwargs):
        self.room, self.since = room, since
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        if len(inputs["input_ids"]) > self.room and self.state.global_step >= self.since:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss


def trainer(tokenizer, output_dir, rows, accumulation, room, since=0, **values):
    torch.manual_seed(0)
    policy = build_policy(CONFIG, tokenizer)
    args = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        max_steps=3,
        learning_rate=1e-2,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        save_strategy="no",
        remove_unused_columns=False,  # as recipes/pretrain.py
        **values,
    )
    blocks = build_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, 4)
    return Tight(model=policy, args=args, train_dataset=blocks, data_collator=collate_blocks, room=room, since=since)


def test_smaller_micro_batches_keep_the_global_batch_and_the_run(tokenizer, tmp_path):
    found = trainer(tokenizer, tmp_path, 8, 1, room=3, auto_find_batch_size=True)
    train_where_it_fits(found, found.train)
    assert (found.args.per_device_train_batch_size, found.args.gradient_accumulation_steps) == (2, 4)
    plain = trainer(tokenizer, tmp_path, 2, 4, room=3)
    plain.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (found, plain)]
    assert losses[0] == losses[1] and found.state.global_step == 3
    for mine, other in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_without_auto_find_batch_size_the_error_comes_through(tokenizer, tmp_path):
    tight = trainer(tokenizer, tmp_path, 4, 1, room=3)
    with pytest.raises(torch.OutOfMemoryError):
        train_where_it_fits(tight, tight.train)


def test_memory_that_ends_later_changes_no_weights_in_silence(tokenizer, tmp_path):
    late = trainer(tokenizer, tmp_path, 4, 1, room=3, since=1, auto_find_batch_size=True)
    with pytest.raises(InputError, match="in step 2.*per_device_train_batch_size: 2 with gradient_accumulation_steps: 2"):
        train_where_it_fits(late, late.train)


def test_one_row_that_does_not_fit_is_one_line(tokenizer, tmp_path):
    tight = trainer(tokenizer, tmp_path, 3, 1, room=0, auto_find_batch_size=True)
    with pytest.raises(InputError, match="one row at a time"):
        train_where_it_fits(tight, tight.train)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_says_which_keys_help_and_by_how_much(error, capsys):
    class Training:
        output_dir, per_device_train_batch_size, gradient_accumulation_steps = ".", 6, 2
        activation_checkpointing, max_length, use_peft = False, 1024, False

    advice = out_of_memory(error, (RunArguments(), Training()))
    for part in (
        "per_device_train_batch_size: 3 with gradient_accumulation_steps: 4",
        "activation_checkpointing: true",
        "max_length: 512",
        "use_peft: true",
    ):
        assert part in advice

    def main(run):
        raise error

    with pytest.raises(SystemExit) as left:
        launch(main, RunArguments, argv=[])
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "out of memory" in line


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and out_of_memory(ValueError("out of memory"), ()) is None
