"""KTO takes labelled answers and pairs alike, in an order from which both kinds can be learned."""

import json

import ppo_toys as toys
import pytest
import torch
import trl
from datasets import Dataset

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_train_eval
from llmrecipes.dpo import DPOTrainer
from llmrecipes.kto import KTOTrainer, to_labelled
from llmrecipes.resume import _require_equal_steps

PAIRS = [{"prompt": f"w{i} ", "chosen": "w10 w11", "rejected": f"w20 w{21 + i}"} for i in range(24)]


def build(tmp_path, rows, tokenizer=None, **changes):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 8, "max_steps": 12, "learning_rate": 5e-3, "save_strategy": "no"}
    args = trl.KTOConfig(**(settings | {"activation_checkpointing": False} | changes))
    return KTOTrainer(
        model=toys.policy(),
        ref_model=toys.policy(),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer or toys.tokenizer(),
    )


def test_pair_becomes_a_good_and_a_bad_answer_and_batches_hold_both():
    rows = to_labelled(Dataset.from_list([{**pair, "margin": 1.0} for pair in PAIRS]), seed=0)
    assert sorted(rows.column_names) == ["completion", "label", "prompt"]
    told = {(row["prompt"], row["completion"], row["label"]) for row in rows}
    assert told == {(p["prompt"], p["chosen"], True) for p in PAIRS} | {(p["prompt"], p["rejected"], False) for p in PAIRS}
    assert all(len(set(rows["label"][i : i + 8])) == 2 for i in range(0, len(rows), 8))
    assert to_labelled(rows, seed=1) is rows and to_labelled(None, 0) is None


def test_good_answers_become_likelier_and_bad_ones_less(tmp_path):
    trainer = build(tmp_path, to_labelled(Dataset.from_list(PAIRS), seed=0))
    assert (trainer.row_counts["train"].used, trainer.row_counts["train"].what) == (48, "labelled answers")

    @torch.no_grad()
    def margin(model):
        ids = [torch.tensor([toys.tokenizer()(f"w5 {answer}")["input_ids"]]) for answer in ("w10 w11", "w20 w26")]
        return float(model(labels=ids[1], input_ids=ids[1]).loss - model(labels=ids[0], input_ids=ids[0]).loss)

    before = margin(trainer.model)
    trainer.train()
    assert margin(trainer.model) > before + 0.5


def test_rows_that_max_length_leaves_no_answer_are_counted(tmp_path):
    long = {"prompt": " ".join(["w5"] * 40), "completion": "w6", "label": True}
    short = [{"prompt": "w5 ", "completion": f"w{i}", "label": i % 2 == 0} for i in range(9)]
    counts = build(tmp_path, Dataset.from_list([*short, long]), max_length=16).row_counts["train"]
    assert (counts.rows, counts.dropped, counts.lost, counts.loss_tokens) == (10, 1, 1, 18)  # each answer and its EOS


def test_answers_end_where_generation_stops_also_where_the_template_marks_no_end(tmp_path, capsys):
    own = toys.tokenizer()
    own.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}{% endif %}"
    turn = lambda role, text: [{"role": role, "content": text}]
    rows = [{"prompt": turn("user", "w5"), "completion": turn("assistant", f"w{i}"), "label": i % 2 == 0} for i in range(8)]
    ready = build(tmp_path, Dataset.from_list(rows), own).train_dataset
    for column in ("completion_ids", "KL_completion_ids"):
        assert {ids[-1] for ids in ready[column]} == {toys.EOS} and {len(ids) for ids in ready[column]} == {2}
    assert "train: after 8 of 8 answers" in capsys.readouterr().out


def test_turns_of_others_inside_an_answer_are_counted_in_a_warning(tmp_path, capsys):
    turn = lambda role, text: {"role": role, "content": text}
    short, long = [turn("assistant", "w6")], [turn("assistant", "w7"), turn("user", "w8"), turn("assistant", "w9")]
    rows = [
        {"prompt": [turn("user", "w5")], "completion": long if i % 4 == 1 else short, "label": i % 2 == 0} for i in range(16)
    ]
    said = "warning: train: 4 of 16 rows have turns of the user's or a tool's inside an answer, which carry loss like the"
    build(tmp_path, Dataset.from_list(rows))
    assert said in capsys.readouterr().out
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": short} for row in rows]
    args = trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    for rows, warned in ((pairs, True), (PAIRS, False)):
        options = {"train_dataset": Dataset.from_list(rows), "processing_class": toys.tokenizer()}
        DPOTrainer(model=toys.policy(), ref_model=toys.policy(), args=args, **options)
        assert (said in capsys.readouterr().out) == warned


def test_nobody_learns_to_end_where_an_answer_was_cut(tmp_path):
    pairs = [pair | {"chosen_finished": i % 3 > 0, "rejected_finished": True} for i, pair in enumerate(PAIRS)]
    ready = build(tmp_path, to_labelled(Dataset.from_list(pairs), seed=0)).train_dataset
    cut = [row["label"] and int(row["prompt"][1:]) % 3 == 0 for row in ready]
    assert [ids[-1] != toys.EOS for ids in ready["completion_ids"]] == cut and sum(cut) == 8
    for first in range(0, len(ready), 8):  # behind the other prompts of a batch they are cut too
        whole, turned = (ready[name][first : first + 8] for name in ("completion_ids", "KL_completion_ids"))
        assert turned == [whole[-1], *whole[:-1]]


def test_rows_of_which_max_length_leaves_none_are_one_line(tmp_path):
    rows = [{"prompt": " ".join(["w5"] * 40), "completion": f"w{i}", "label": i % 2 == 0} for i in range(9)]
    with pytest.raises(InputError, match="nothing is left to learn from: none of 9"):
        build(tmp_path, Dataset.from_list(rows), max_length=3)


def test_answers_of_one_label_are_refused(tmp_path):
    rows = Dataset.from_list([{"prompt": "w5", "completion": "w6", "label": True}] * 9)
    with pytest.raises(InputError, match="every label is true"):
        build(tmp_path, rows)


def test_labelled_answers_are_held_out_by_whole_prompts(tmp_path):
    rows = [{"prompt": f"w{i % 6}", "completion": f"w{i}", "label": i % 2 == 0} for i in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataArguments(datasets=[DatasetSource(path=str(file))], test_split_size=0.25)
    train, held_out = load_train_eval(data, 0, ("unpaired preference", "preference"))
    assert len(train) + len(held_out) == 24 and not set(train["prompt"]) & set(held_out["prompt"])


def test_run_that_is_cut_up_otherwise_is_refused_for_its_kl(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrecipes.resume.read_seal", lambda checkpoint: {"cut_up": [4, 2, 1]})
    rows = to_labelled(Dataset.from_list(PAIRS), seed=0)
    with pytest.raises(InputError, match="KTO measures KL on the rows of a micro-batch"):
        _require_equal_steps(build(tmp_path, rows), tmp_path)
    _require_equal_steps(build(tmp_path, rows, loss_type="apo_zero_unpaired"), tmp_path)  # which has no KL


def test_a_loss_of_experts_that_the_model_does_not_have_is_one_line(tmp_path):
    with pytest.raises(InputError, match="router_aux_loss_coef: LlamaForCausalLM is no mixture of experts"):
        build(tmp_path, to_labelled(Dataset.from_list(PAIRS), seed=3), router_aux_loss_coef=0.5)
