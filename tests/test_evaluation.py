"""Scores equal direct computations: task accuracy, held-out likelihood, KL; behaviour is counted on the right questions."""

import copy
import importlib
import json
from types import SimpleNamespace

import pytest
from evaluation_toys import TEXTS, build, question
from peft import LoraConfig, get_peft_model
from recipe_types import recipe_types

from llmrecipes.config import DataArguments, InputError, ModelArguments, RunArguments
from llmrecipes.evaluation import evaluate_models, load_parts, write_results
from llmrecipes.evaluation.abilities import load_tasks
from llmrecipes.evaluation.behaviours import answer, behaviour_hits, judge_answers, summarise_behaviour
from llmrecipes.evaluation.table import format_answers, format_changes, format_table
from llmrecipes.metrics import Estimate, mcnemar, mcnemar_by_measure, proportion
from llmrecipes.models import load_reward_model
from llmrecipes.parsing import parse
from llmrecipes.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=320, max_length=64)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build(tokenizer)


def test_each_behaviour_is_counted_on_its_own_kind_of_question():
    rows = [
        question("person"),
        question("sum"),
        question("lookalike"),
        question("chat", ""),
        question("harmful", ""),
        question("harmful", ""),
        question("unknowable", ""),
    ]
    said = ["right", "idk", "no", "right", "no", "right", "idk"]
    judged = judge_answers(
        rows,
        said,
        lambda row, text: {"correct": text == "right", "refused": text == "no", "unknown": text == "idk", "polite": True},
        lambda row, text: len(text),
    )
    summary = summarise_behaviour(rows, judged, [3] * 7)
    got = {name: (estimate.value, estimate.n) for name, estimate in summary.items()}
    assert got["correct"] == (pytest.approx(1 / 3), 3)  # those with an answer
    assert got["over_abstention"] == (pytest.approx(1 / 3), 3)
    assert got["refused_harmful"] == (0.5, 2) and got["over_refusal"] == (1.0, 1)
    assert got["abstained_unknowable"] == (1.0, 1) and got["rude"] == (0.0, 7)
    assert got["rule_score"] == (pytest.approx(sum(map(len, said)) / 7), 7) and got["response_length"] == (3.0, 7)
    assert "fluent" not in got


def test_models_are_tested_on_the_questions_that_a_measure_counts_and_both_were_judged_on():
    rows = [question("harmful", "")] * 7 + [question("lookalike", "x")] * 3
    sft, ppo = ([{"refused": refuses} for refuses in said] for said in ([False] * 7 + [True] * 3, [True] * 10))
    ppo[6] = {}  # not readable
    tests = mcnemar_by_measure(behaviour_hits(rows, ppo), behaviour_hits(rows, sft))
    assert tests == {"refused_harmful": pytest.approx(2 / 2**6), "over_refusal": 1.0}


def test_the_table_marks_what_differs_from_the_baseline_and_says_how_many_were_compared():
    scores = {name: {"rude": proportion(hits, 9), "toxic": proportion(0, 9)} for name, hits in (("sft", 1), ("ppo", 9))}
    assert "*" not in format_table(scores)
    table = format_table(scores, set(), "sft", {"ppo": {"rude": 0.008, "toxic": 0.05}})
    _, rude, toxic, note = table.splitlines()
    sft, ppo = rude.split("%")[:2], rude.split("%")[2]
    assert ppo.startswith("*") and "*" not in "".join(sft) + toxic
    assert note.startswith("* differs from sft on the same questions, p < 0.05 (McNemar's exact test, ")
    assert "; 2 comparisons, not corrected" in note


def test_the_summary_says_what_got_better_and_what_worse():
    shares = {"sft": {"rude": 5, "correct": 5, "toxic": 5}, "ppo": {"rude": 9, "correct": 9, "toxic": 6}}
    scores = {name: {measure: proportion(hits, 9) for measure, hits in by.items()} for name, by in shares.items()}
    line = format_changes(scores, "sft", {"ppo": {"rude": 0.01, "correct": 0.02, "toxic": 0.5}})
    assert line == "ppo against sft: better: correct; worse: rude"


def test_the_table_shows_the_larger_side_of_an_interval_and_every_n():
    scores = {"a": {"toxic": proportion(0, 160), "rude": proportion(1, 7)}, "b": {"rude": proportion(1, 100)}}
    _, toxic, rude = format_table(scores).splitlines()
    assert toxic.split()[2:5] == ["0.0", "±", "2.3"] and toxic.split()[-1] == "160"
    assert rude.split()[-1] == "7–100"
    kl = format_table({"a": {"kl_from_baseline": Estimate(-0.0001, -0.001, 0.001, 9)}}).splitlines()[1]
    assert kl.split()[1:3] == ["0.000", "±"]


def test_greedy_answers_are_the_same_each_time_and_for_any_batch(model, tokenizer):
    prompts = [[{"role": "user", "content": text}] for text in ("cat", "dog ran", "A red ball")]
    one, other = (answer(model, tokenizer, prompts, max_new_tokens=6, batch_size=size) for size in (1, 3))
    assert one == other


def test_a_questions_tools_are_shown_to_the_model_and_a_refused_one_is_named_by_its_own_row(tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ tools | tojson if tools else '' }}{% if messages[0].role == 'system' %}" + (
        "{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    )
    settings = {"max_new_tokens": 2, "batch_size": 2, "template_options": [{"tools": [{"name": "f"}]}, {}]}
    asked, _, _ = answer(build(own), own, [[{"role": "user", "content": "cat"}]] * 2, **settings)
    assert list(map(own.decode, asked)) == ['[{"name": "f"}]cat>', "cat>"]

    save_model(build(own), own, tmp_path / "b")
    roles = ["user"] * 7 + ["system"] + ["user"] * 4
    rows = [{"prompt": [{"role": role, "content": f"cat {i}"}]} for i, role in enumerate(roles)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [
        "--models",
        json.dumps({"sft": str(tmp_path / "b")}),
        "--datasets",
        str(tmp_path / "q.jsonl"),
        "--output_dir",
        str(tmp_path / "evaluated"),
    ]
    with pytest.raises(InputError, match="q.jsonl, row 8: the chat template refuses the conversation"):
        importlib.import_module("recipes.evaluate").main(*parse(*recipe_types("evaluate"), argv=argv))


def arguments(tmp_path, **changes):
    settings = {
        "models": {"base": str(tmp_path / "a"), "sft": str(tmp_path / "b")},
        "baseline": "sft",
        "tasks": [],
        "tasks_path": "configs/tasks",
        "hub_tasks": False,
        "task_limit": 2,
        "judge": None,
        "rule": None,
        "max_new_tokens": 4,
        "max_length": 32,
        "kl_prompts": 2,
        "show_answers": 2,
        "per_device_eval_batch_size": 4,
        "sample_temperature": 1.0,
        "num_samples": 1,
        "blimp_path": None,
        "seed": 0,
        "reward_model_name_or_path": None,
        "judge_url": None,
        "judge_model": None,
        "judge_price": [],
        "judge_key_variable": "OPENAI_API_KEY",
        "judge_concurrency": 4,
        "judge_pairs": True,
        "judge_guidelines": None,
        "allow_code_execution": False,
        "trust_remote_code": False,
        "output_dir": str(tmp_path),
    }
    return SimpleNamespace(**settings | changes)


def test_every_model_is_scored_on_every_part_and_the_files_hold_it(model, tokenizer, tmp_path, capsys):
    for name, policy in (("a", model), ("b", build(tokenizer, 1))):
        policy.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    gold = "llmrecipes.data.tinytown.gold"
    args = arguments(tmp_path, tasks=["tinytown_syntax"], judge=f"{gold}:judge", rule=f"{gold}:gold_score")
    data = DataArguments(
        datasets=[{"path": "tinytown", "name": "questions", "split": "test", "max_rows": 9}],
        eval_datasets=[{"path": str(tmp_path / "texts.jsonl")}],
    )
    parts = load_parts(data, args)
    scores, rows, answers = evaluate_models(ModelArguments(), args, parts)
    flat = write_results(tmp_path, scores, rows, answers, parts, args.show_answers)

    assert list(scores) == ["base", "sft"] and parts.skipped == {}
    assert {
        "perplexity",
        "bits_per_byte",
        "tinytown_syntax",
        "rude",
        "rule_score",
        "rule_win_rate",
        "kl_from_baseline",
    } <= set(scores["base"])
    assert not {"rule_win_rate", "sampled_rule_win_rate", "kl_from_baseline"} & set(scores["sft"])
    assert {"sampled_rude", "sampled_rule_score", "sampled_rule_win_rate"} <= set(scores["base"])
    written = json.loads((tmp_path / "metrics.json").read_text())["models"]["base"]["rule_win_rate"]
    assert set(written) == {"value", "low", "high", "n"} and written["value"] == flat["base/rule_win_rate"]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_bytes().splitlines()]
    assert len(lines) == 9 and set(lines[0]["answers"]) == set(lines[0]["judged"]) == {"base", "sft"}
    whole = json.loads((tmp_path / "metrics.json").read_text())
    polite = [[line["judged"][name]["polite"] for line in lines] for name in ("base", "sft")]
    assert whole["baseline"] == "sft" and set(whole["p_values"]) == {"base"}
    assert whole["p_values"]["base"]["rude"] == mcnemar(*polite)[2] and "rule_score" not in whole["p_values"]["base"]
    assert "tinytown_syntax" in whole["p_values"]["base"]
    assert "* differs from sft" in (tmp_path / "table.txt").read_text()
    printed = capsys.readouterr().out
    assert all(measure in printed for measure in scores["base"]) and printed.count("\n> ") == 2


def test_without_questions_there_is_no_file_of_answers_and_no_card_that_names_one(model, tokenizer, tmp_path):
    from llmrecipes.evaluation.arguments import EvaluateArguments
    from recipes.evaluate import main

    model.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    args = EvaluateArguments(str(tmp_path / "out"), {"a": str(tmp_path / "a")}, max_length=32)
    texts = DataArguments(eval_datasets=[{"path": str(tmp_path / "texts.jsonl")}])
    main(RunArguments(), texts, args, ModelArguments())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "metrics.json", "table.txt"}


def test_answers_shown_are_of_different_kinds_and_one_line_each():
    rows = [question("sum"), question("sum"), question("chat"), question("story")]
    shown = format_answers(rows, {"sft": ["a\nb", "c", "", "d" * 999]}, 3).splitlines()
    assert [line for line in shown if line.startswith("  ")][:2] == ["  sft: a b", "  sft: (nothing)"]
    assert shown[-1].startswith("  sft: ddd") and len(shown[-1]) < 260


def save_model(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_parts_that_are_not_configured_are_skipped_with_a_reason(model, tokenizer, tmp_path):
    own = {"sft": save_model(model, tokenizer, tmp_path / "a")}
    parts = load_parts(DataArguments(), arguments(tmp_path, baseline="teacher", models=own))
    assert {"perplexity", "behaviour", "abilities"} <= set(parts.skipped)
    assert "'teacher' is not among the models" in " ".join(parts.skipped.values())


def test_a_task_whose_data_is_out_of_reach_is_one_line(tmp_path):
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "gone.jsonl")}, "test_split": "train"}
    text = {"task": "far", "output_type": "multiple_choice", "doc_to_text": "a", "doc_to_choice": "b", "doc_to_target": "c"}
    (tmp_path / "far.yaml").write_text(json.dumps(text | where))
    with pytest.raises(InputError, match="^tasks: far cannot be loaded: "):
        load_tasks(["far"], str(tmp_path))


def test_a_model_that_is_not_there_or_answers_nothing_is_one_line_before_any_is_loaded(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "a")
    reward = load_reward_model(ModelArguments(model_name_or_path=str(tmp_path / "a")), tokenizer)
    (tmp_path / "empty").mkdir()
    lora = get_peft_model(reward, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"]))
    wrong = {
        "gone": "does not exist",
        "empty": "cannot be read",
        "adapter": "scores answers but cannot write any",
        "reward": "scores answers but cannot write any",
    }
    lora.save_pretrained(tmp_path / "adapter")
    lora.unload().save_pretrained(tmp_path / "reward")
    for name, line in wrong.items():
        models = {"sft": str(tmp_path / "a"), "other": str(tmp_path / name)}
        with pytest.raises(InputError, match=f"^models: other: .*{line}"):
            load_parts(DataArguments(), arguments(tmp_path, models=models))


def test_a_question_that_a_chat_template_does_not_show_is_one_line_before_a_model_is_loaded(model, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + tokenizer.chat_template
    save_model(model, tokenizer, tmp_path / "a")
    save_model(model, other, tmp_path / "b")
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    data, args = DataArguments(datasets=[str(tmp_path / "asked.jsonl")]), arguments(tmp_path)
    args.models = {"sft": str(tmp_path / "a")}
    assert len(load_parts(data, args).questions) == 1
    args.models["other"] = str(tmp_path / "b")
    with pytest.raises(InputError, match=r"asked.jsonl, row 1: the chat .* no system; .* \(models: other\)"):
        load_parts(data, args)
    other.chat_template = None
    args.models["other"] = save_model(model, other, tmp_path / "c")
    with pytest.raises(InputError, match="models: other: .* has no chat template"):
        load_parts(data, args)


def test_no_model_is_one_line(tmp_path):
    with pytest.raises(InputError, match="`models` is missing"):
        load_parts(DataArguments(), arguments(tmp_path, models={}))
