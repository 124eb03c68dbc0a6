"""Watching a model while it trains changes nothing of what it learns, costs what is allowed, survives a resume."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from judge_server import judge_servers, pair_reply
from transformers import Trainer, TrainerCallback, TrainingArguments

import llmrecipes.evaluation.watch as watch_module
from llmrecipes.config import InputError
from llmrecipes.evaluation.watch import WatchArguments, add_watch, load_watch
from llmrecipes.evaluation.watch_win_rate import RewardComparison
from llmrecipes.models import build_policy
from llmrecipes.pacing import NotFinite, stop_where_not_finite
from llmrecipes.templates import row_check
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.blocks import collate_blocks

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}

QUESTIONS = {"path": "tinytown", "name": "questions", "split": "test", "max_rows": 6}
NOBODY = "http://127.0.0.1:9/v1"


def train(tmp_path, name, asked, max_steps=6, resume=None, chat=True, callbacks=None):
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=128)
    torch.manual_seed(0)
    model = build_policy(SHAPE | {"attention_dropout": 0.1}, tokenizer)
    rows = [{"input_ids": torch.arange(i, i + 16)} for i in range(40)]
    args = TrainingArguments(
        output_dir=str(tmp_path / name),
        max_steps=max_steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_steps=3,
        logging_steps=1,
        disable_tqdm=True,
        seed=1,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collate_blocks,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    add_watch(trainer, load_watch(asked), tokenizer, chat)
    trainer.train(resume_from_checkpoint=resume)
    file = tmp_path / name / "watch.jsonl"
    found = [json.loads(line) for line in file.open()] if file.exists() else []
    return trainer, found


def watching(**changes):
    asked = {"watch_steps": 2, "watch_prompts": ["The cat"], "watch_max_new_tokens": 4, "watch_share": 1.0}
    return WatchArguments(**asked | changes)


@pytest.fixture
def serve(monkeypatch):
    with judge_servers(monkeypatch) as start:
        yield start


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A folder whose head is missing, so that loading draws one."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=512)
    build_policy(SHAPE | {"max_position_embeddings": 512}, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForSequenceClassification"],
        "num_labels": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("judge", ["golds", "rewards", "texts"])
def test_what_is_learned_is_the_same_bit_for_bit(tmp_path, judge, reward_model, serve):
    plain, nothing = train(tmp_path, "plain", WatchArguments())
    judges = {
        "golds": {"watch_rule": f"{__name__}:count_letters"},
        "rewards": {"watch_reward_model": reward_model},
        "texts": {"judge_url": serve(pair_reply(lambda a, b: "A" if a < b else "B")).url, "judge_model": "m"},
    }
    asked = {"watch_questions": QUESTIONS} | judges[judge]
    watched, rows = train(tmp_path, "watched", watching(watch_tasks=["tinytown_grammar"], watch_items=4, **asked))
    assert nothing == [] and [row["step"] for row in rows] == [0, 2, 4, 6]
    for row in rows:
        pairs = list(zip(row[judge], rows[0][judge], strict=True))
        better = sum((a < b if judge == "texts" else a > b) + 0.5 * (a == b) for a, b in pairs)
        assert row["scores"]["win_rate"]["value"] == better / len(pairs)
    assert any(row[judge] != rows[0][judge] for row in rows), "or nothing was compared"
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(set(row["answers"]) == {"The cat"} and row["scores"]["tinytown_grammar"]["n"] == 4 for row in rows)
    curve = [(e["step"], e["watch/tinytown_grammar"]) for e in watched.state.log_history if "watch/tinytown_grammar" in e]
    assert curve == [(row["step"], row["scores"]["tinytown_grammar"]["value"]) for row in rows]
    assert watched.model.training == plain.model.training


def test_weights_that_are_not_finite_are_not_watched_on_a_gpu(tmp_path, monkeypatch):
    """There a step's gradient is looked at only in the next step, but here before anything is drawn from the weights."""
    monkeypatch.setattr(NotFinite, "is_late", property(lambda self: True, lambda self, value: None), raising=False)

    real = Trainer.train

    def train_checked(trainer, **kwargs):
        norm = trainer._get_grad_norm
        trainer._get_grad_norm = lambda *a, **k: (
            norm(*a, **k) if trainer.state.global_step < 3 else torch.tensor(float("inf"))
        )
        stop_where_not_finite(trainer)
        return real(trainer, **kwargs)

    monkeypatch.setattr(Trainer, "train", train_checked)
    with pytest.raises(InputError, match="step 3: the gradient is not finite"):
        train(tmp_path, "o", watching())
    rows = [json.loads(line) for line in (tmp_path / "o" / "watch.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 2]


def test_rows_beyond_the_share_of_time_are_left_out(tmp_path, capsys):
    _, rows = train(tmp_path, "capped", watching(watch_share=0.0))
    assert [row["step"] for row in rows] == [0] and "skipped 3 times" in capsys.readouterr().out


def test_a_resumed_run_has_each_step_once(tmp_path):
    train(tmp_path, "run", watching(watch_steps=1), max_steps=5)
    file = tmp_path / "run" / "watch.jsonl"
    odd = file.read_text().replace("The cat", "The\u2028cat", 1)  # what str.splitlines takes for the end of a line
    file.write_text(odd + '{"step": 6, "answers": {"The cat": "')
    _, rows = train(tmp_path, "run", watching(watch_steps=1), resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert set(rows[0]["answers"]) == {"The\u2028cat"}


def test_scores_reach_trackers_and_take_no_line_from_them(tmp_path):
    class Tracker(TrainerCallback):
        lines = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.lines.append((state.global_step, "loss" in logs, "watch/tinytown_grammar" in logs))

    asked = watching(watch_steps=3, watch_tasks=["tinytown_grammar"], watch_items=4)
    train(tmp_path, "tracked", asked, callbacks=[Tracker()])
    looked = [step for step, _, has_score in Tracker.lines if has_score]
    assert looked == [0, 3, 6] and [step for step, has_loss, _ in Tracker.lines if has_loss] == [1, 2, 3, 4, 5, 6]


def test_win_rate_is_over_the_step_0_also_after_a_resume(tmp_path, monkeypatch):
    said = iter([["bad"] * 6, ["bad"] * 3 + ["good"] * 3, ["good"] * 6])  # at steps 0 and 3, and after the resume
    monkeypatch.setattr(watch_module, "answer", lambda model, tokenizer, prompts, **options: (None, None, next(said)))
    asked = watching(watch_steps=3, watch_prompts=[], watch_questions=QUESTIONS, watch_rule=f"{__name__}:is_good")
    train(tmp_path, "run", asked, max_steps=4)
    _, rows = train(tmp_path, "run", asked, resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [(row["step"], row["scores"]["win_rate"]["value"]) for row in rows] == [(0, 0.5), (3, 0.75), (6, 1.0)]
    assert rows[1]["golds"] == [0.0] * 3 + [1.0] * 3 and rows[1]["scores"]["win_rate"]["n"] == 6


def test_win_rate_without_the_answers_of_step_0_says_over_what_it_is(tmp_path, monkeypatch, capsys):
    said = iter([["bad"] * 6] * 2 + [["good"] * 6])
    monkeypatch.setattr(watch_module, "answer", lambda model, tokenizer, prompts, **options: (None, None, next(said)))
    asked = watching(watch_steps=3, watch_prompts=[], watch_questions=QUESTIONS, watch_rule=f"{__name__}:is_good")
    train(tmp_path, "run", asked, max_steps=4)
    (tmp_path / "run" / "watch.jsonl").unlink()
    _, rows = train(tmp_path, "run", asked, resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [(row["step"], row["scores"]["win_rate"]["value"]) for row in rows] == [(6, 0.5)]
    assert "watch: no answers of step 0 are left; win rates are over those of the next step" in capsys.readouterr().out


def test_win_rate_by_a_judge_is_over_the_answers_of_step_0_also_after_a_resume(tmp_path, monkeypatch, serve, capsys):
    said = iter([["bad"] * 6, ["bad"] * 3 + ["good"] * 3, ["good"] * 6])
    monkeypatch.setattr(watch_module, "answer", lambda model, tokenizer, prompts, **options: (None, None, next(said)))
    server = serve(pair_reply(lambda a, b: "A" if a == "good" else "B"))
    (tmp_path / "ours.md").write_text("Better is what is good.")
    judge = {
        "judge_url": server.url,
        "judge_model": "m",
        "judge_price": [1e6, 0.0],
        "judge_guidelines": str(tmp_path / "ours.md"),
    }
    asked = lambda: watching(watch_steps=3, watch_prompts=[], watch_questions=QUESTIONS, **judge)
    train(tmp_path, "run", asked(), max_steps=4)
    # Once whether it is there, then three pairs in two orders.
    shown = capsys.readouterr().out
    assert len(server.requests) == 1 + 6 and "watch: judge calls 7" in shown and "dollars" in shown
    assert all("Better is what is good." in question for question in server.questions[1:])
    _, rows = train(tmp_path, "run", asked(), resume=str(tmp_path / "run" / "checkpoint-3"))
    assert [(row["step"], row["scores"]["win_rate"]["value"]) for row in rows] == [(0, 0.5), (3, 0.75), (6, 1.0)]
    assert rows[0]["texts"] == ["bad"] * 6 and len(server.requests) == 7 + 1 + 12


def test_a_judge_that_is_away_costs_a_win_rate_and_not_the_training(tmp_path, serve, capsys):
    server = serve(lambda question: "A", [200] + [500] * 6 * 24 + [200] * 99)
    judge = {"judge_url": server.url, "judge_model": "m", "watch_temperature": 0.0}
    trainer, rows = train(tmp_path, "run", watching(watch_prompts=[], watch_steps=3, watch_questions=QUESTIONS, **judge))
    assert trainer.state.global_step == 6 and [row["step"] for row in rows] == [0, 3, 6]
    assert "win_rate" in rows[0]["scores"] and "win_rate" not in rows[1]["scores"]
    assert "watch: no win rate at step 3: judge_url: " in capsys.readouterr().out


def test_loading_a_reward_model_draws_no_number(reward_model):
    before = torch.get_rng_state()
    RewardComparison(reward_model)
    assert torch.equal(torch.get_rng_state(), before)


def count_letters(row, text):
    return sum(letter.isalpha() for letter in text)


def is_good(row, text):
    return float(text == "good") if row["prompt"] else None


def test_a_base_model_continues_the_prompt_and_a_chat_model_is_asked(tmp_path, monkeypatch):
    asked = []

    def answer(model, tokenizer, prompts, **options):
        asked.extend(prompts)
        return None, None, [""] * len(prompts)

    monkeypatch.setattr(watch_module, "answer", answer)
    train(tmp_path, "base", watching(watch_steps=6), chat=False)
    train(tmp_path, "chat", watching(watch_steps=6), chat=True)
    assert asked == ["The cat"] * 2 + [[{"role": "user", "content": "The cat"}]] * 2


@pytest.mark.parametrize(
    ("kind", "flag"), [(DistributedType.FSDP, False), (DistributedType.DEEPSPEED, False), (DistributedType.MULTI_GPU, True)]
)
def test_sharded_models_are_not_watched_and_it_says_so(kind, flag, capsys):
    """Accelerate's own YAML shards without a word in TrainingArguments; one process alone would then wait for ever."""
    added = []
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=kind),
        is_fsdp_enabled=flag,
        is_world_process_zero=lambda: True,
        add_callback=added.append,
    )
    add_watch(trainer, load_watch(watching()), None)
    assert not added and "watch: turned off under" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"watch_tasks": ["dogs"]}, "there is no 'dogs'"),
        ({"watch_questions": QUESTIONS}, "watch_questions goes together with one of"),
        ({"watch_rule": "json:loads"}, "watch_questions goes together with one of"),
        (
            {"watch_questions": QUESTIONS, "watch_rule": "json:loads", "watch_reward_model": "x"},
            "given: watch_rule, watch_reward_model",
        ),
        ({"watch_questions": QUESTIONS, "judge_url": NOBODY}, "judge_url and judge_model go together"),
        ({"watch_questions": QUESTIONS, "judge_url": NOBODY, "judge_model": "m"}, "^judge_url: http"),
        (
            {"watch_questions": QUESTIONS, "judge_url": NOBODY, "judge_model": "m", "judge_price": [1.0]},
            "judge_price: give two",
        ),
        (
            {"watch_questions": QUESTIONS, "judge_url": NOBODY, "judge_model": "m", "judge_guidelines": "no.md"},
            "judge_guidelines: no.md does not exist",
        ),
        ({"watch_questions": QUESTIONS, "watch_reward_model": "./none"}, "watch_reward_model: ./none cannot be read"),
        ({"watch_questions": {"pat": "x"}, "watch_rule": "json:loads"}, "unknown key `pat`"),
        ({"watch_questions": QUESTIONS, "watch_rule": "json:none"}, "watch_rule: cannot load"),
        ({"watch_prompts": []}, "nothing to watch"),
    ],
)
def test_what_cannot_be_watched_is_one_line_before_a_model_is_loaded(wrong, line, serve):
    with pytest.raises(InputError, match=line):
        load_watch(watching(**wrong))


def test_what_a_chat_template_refuses_of_what_is_watched_is_told_before_a_model_is_loaded(tmp_path):
    tokenizer = train_tokenizer(["The cat sat on the mat."] * 5, vocab_size=300, max_length=128)
    tokenizer.chat_template = "{% for m in messages %}{{ raise_exception('Calm down') if '!' in m.content }}{{ m.content }}"
    tokenizer.chat_template += "{% endfor %}"
    check = row_check(tokenizer)
    assert load_watch(watching(), check).args.watch_prompts == ["The cat"]
    with pytest.raises(
        InputError, match=r"^watch_prompts\[1\]: the chat template refuses the conversation \(user\): Calm down"
    ):
        load_watch(watching(watch_prompts=["The cat", "Go!"]), check)
    rows = tmp_path / "asked.jsonl"
    rows.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": text}]}) + "\n" for text in ("Go?", "Go!")))
    asked = {"watch_questions": {"path": str(rows)}, "watch_rule": "json:loads"}
    with pytest.raises(InputError, match="asked.jsonl, row 2: the chat template refuses the conversation"):
        load_watch(watching(**asked), check)
