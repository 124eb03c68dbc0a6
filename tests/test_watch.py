"""Looking at a model while it learns changes nothing of what it learns, costs what is allowed, survives a resume."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

from llmrecipes.config import InputError
from llmrecipes.evaluation.watch import WatchArguments, watch
from llmrecipes.models import build_policy, train_tokenizer
from llmrecipes.training import collate_blocks

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 128}  # fmt: skip


def train(tmp_path, name, looks, max_steps=6, resume=None, **changes):
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=128)
    torch.manual_seed(0)
    model = build_policy(SHAPE | {"attention_dropout": 0.1}, tokenizer)
    rows = [{"input_ids": torch.arange(i, i + 16)} for i in range(40)]
    args = TrainingArguments(
        output_dir=str(tmp_path / name), max_steps=max_steps, per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to="none", save_steps=3, logging_steps=1, disable_tqdm=True, seed=1, **changes,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate_blocks, processing_class=tokenizer)
    watch(trainer, looks, tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    file = tmp_path / name / "watch.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return trainer, found


def looks(**changes):
    asked = {"watch_steps": 2, "watch_prompts": ["The cat"], "watch_max_new_tokens": 4, "watch_share": 1.0}
    return WatchArguments(**asked | changes)


def test_what_is_learned_is_the_same_bit_for_bit(tmp_path):
    plain, nothing = train(tmp_path, "plain", WatchArguments())
    watched, rows = train(tmp_path, "watched", looks(watch_tasks=["tinytown_grammar"], watch_items=4))
    assert nothing == [] and [row["step"] for row in rows] == [2, 4, 6]
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(set(row["answers"]) == {"The cat"} and row["scores"]["tinytown_grammar"]["n"] == 4 for row in rows)
    curve = [(e["step"], e["watch/tinytown_grammar"]) for e in watched.state.log_history if "watch/tinytown_grammar" in e]
    assert curve == [(row["step"], row["scores"]["tinytown_grammar"]["value"]) for row in rows]
    assert watched.model.training == plain.model.training


def test_looks_beyond_the_share_of_time_are_left_out(tmp_path, capsys):
    _, rows = train(tmp_path, "capped", looks(watch_share=0.0))
    assert [row["step"] for row in rows] == [2] and "2 looks left out" in capsys.readouterr().out


def test_a_resumed_run_has_each_step_once(tmp_path):
    train(tmp_path, "run", looks(watch_steps=1), max_steps=5)
    _, rows = train(tmp_path, "run", looks(watch_steps=1), resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_task_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no 'dogs'"):
        train(tmp_path, "bad", looks(watch_tasks=["dogs"]))
