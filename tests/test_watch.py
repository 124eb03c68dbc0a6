"""Looking at a model while it learns changes nothing of what it learns, costs what is allowed, survives a resume."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from transformers import Trainer, TrainerCallback, TrainingArguments

import llmrecipes.evaluation.watch as watch_module
from llmrecipes.config import InputError
from llmrecipes.evaluation.watch import WatchArguments, watch
from llmrecipes.models import build_policy, train_tokenizer
from llmrecipes.training import collate_blocks

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "max_position_embeddings": 128}  # fmt: skip

QUESTIONS = {"path": "tinytown", "name": "questions", "split": "test", "max_rows": 6}


def train(tmp_path, name, looks, max_steps=6, resume=None, chat=True, callbacks=None):
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=128)
    torch.manual_seed(0)
    model = build_policy(SHAPE | {"attention_dropout": 0.1}, tokenizer)
    rows = [{"input_ids": torch.arange(i, i + 16)} for i in range(40)]
    args = TrainingArguments(
        output_dir=str(tmp_path / name), max_steps=max_steps, per_device_train_batch_size=2, learning_rate=1e-2,
        use_cpu=True, report_to="none", save_steps=3, logging_steps=1, disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=args, train_dataset=rows, data_collator=collate_blocks, processing_class=tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    watch(trainer, looks, tokenizer, chat)
    trainer.train(resume_from_checkpoint=resume)
    file = tmp_path / name / "watch.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return trainer, found


def looks(**changes):
    asked = {"watch_steps": 2, "watch_prompts": ["The cat"], "watch_max_new_tokens": 4, "watch_share": 1.0}
    return WatchArguments(**asked | changes)


def test_what_is_learned_is_the_same_bit_for_bit(tmp_path):
    plain, nothing = train(tmp_path, "plain", WatchArguments())
    asked = {"watch_questions": QUESTIONS, "watch_rule": "llmrecipes.data.tinytown.gold:gold_score"}
    watched, rows = train(tmp_path, "watched", looks(watch_tasks=["tinytown_grammar"], watch_items=4, **asked))
    assert nothing == [] and [row["step"] for row in rows] == [0, 2, 4, 6]
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(set(row["answers"]) == {"The cat"} and row["scores"]["tinytown_grammar"]["n"] == 4 for row in rows)
    curve = [(e["step"], e["watch/tinytown_grammar"]) for e in watched.state.log_history if "watch/tinytown_grammar" in e]
    assert curve == [(row["step"], row["scores"]["tinytown_grammar"]["value"]) for row in rows]
    assert watched.model.training == plain.model.training


def test_looks_beyond_the_share_of_time_are_left_out(tmp_path, capsys):
    _, rows = train(tmp_path, "capped", looks(watch_share=0.0))
    assert [row["step"] for row in rows] == [0] and "3 looks left out" in capsys.readouterr().out


def test_a_resumed_run_has_each_step_once(tmp_path):
    train(tmp_path, "run", looks(watch_steps=1), max_steps=5)
    _, rows = train(tmp_path, "run", looks(watch_steps=1), resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]


def test_scores_reach_trackers_and_take_no_line_from_them(tmp_path):
    class Tracker(TrainerCallback):
        lines = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.lines.append((state.global_step, "loss" in logs, "watch/tinytown_grammar" in logs))

    train(tmp_path, "tracked", looks(watch_steps=3, watch_tasks=["tinytown_grammar"], watch_items=4), callbacks=[Tracker()])
    looked = [step for step, _, has_score in Tracker.lines if has_score]
    assert looked == [0, 3, 6] and [step for step, has_loss, _ in Tracker.lines if has_loss] == [1, 2, 3, 4, 5, 6]


def test_win_rate_is_over_the_first_look_also_after_a_resume(tmp_path, monkeypatch):
    said = iter([["bad"] * 6, ["bad"] * 3 + ["good"] * 3, ["good"] * 6])  # at steps 0 and 3, and after the resume
    monkeypatch.setattr(watch_module, "answer", lambda model, tokenizer, prompts, **options: (None, None, next(said)))
    asked = looks(watch_steps=3, watch_prompts=[], watch_questions=QUESTIONS, watch_rule=f"{__name__}:is_good")
    train(tmp_path, "run", asked, max_steps=4)
    _, rows = train(tmp_path, "run", asked, resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [(row["step"], row["scores"]["win_rate"]["value"]) for row in rows] == [(0, 0.5), (3, 0.75), (6, 1.0)]
    assert rows[1]["golds"] == [0.0] * 3 + [1.0] * 3 and rows[1]["scores"]["win_rate"]["n"] == 6


def is_good(row, text):
    return float(text == "good") if row["prompt"] else None


def test_a_base_model_continues_the_prompt_and_a_chat_model_is_asked(tmp_path, monkeypatch):
    asked = []

    def answer(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        return None, None, [""] * len(prompts)

    monkeypatch.setattr(watch_module, "answer", answer)
    train(tmp_path, "base", looks(watch_steps=6), chat=False)
    train(tmp_path, "chat", looks(watch_steps=6), chat=True)
    assert asked == ["The cat"] * 2 + [[{"role": "user", "content": "The cat"}]] * 2


@pytest.mark.parametrize(("kind", "flag"), [(DistributedType.FSDP, False), (DistributedType.DEEPSPEED, False),
                                            (DistributedType.MULTI_GPU, True)])  # fmt: skip
def test_sharded_models_are_not_looked_at_and_it_says_so(kind, flag, capsys):
    """Accelerate's own YAML shards without a word in TrainingArguments; one process alone would then wait for ever."""
    added = []
    trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=kind), is_fsdp_enabled=flag,
                              is_world_process_zero=lambda: True, add_callback=added.append)  # fmt: skip
    watch(trainer, looks(), None)
    assert not added and "watch: left out under" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "line"),
    [({"watch_tasks": ["dogs"]}, "there is no 'dogs'"), ({"watch_share": 1.5}, "watch_share: 1.5"),
     ({"watch_questions": QUESTIONS}, "watch_questions and watch_rule go together"),
     ({"watch_questions": {"pat": "x"}, "watch_rule": "json:loads"}, "unknown key `pat`"),
     ({"watch_questions": QUESTIONS, "watch_rule": "json:none"}, "watch_rule: cannot load"),
     ({"watch_items": 0}, "watch_items"), ({"watch_temperature": -1.0}, "watch_temperature: -1"),
     ({"watch_prompts": []}, "nothing to look at")],
)  # fmt: skip
def test_what_cannot_be_watched_is_one_line_when_the_arguments_are_read(wrong, line):
    with pytest.raises(InputError, match=line):
        looks(**wrong)
