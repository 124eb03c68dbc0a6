"""Scores equal direct computations: task accuracy, held-out likelihood, KL; behaviour is counted on the right questions."""

import copy
import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from recipe_types import recipe_types

from llmrecipes.config import DataArguments, InputError, ModelArguments, RunArguments, load_function
from llmrecipes.evaluation import evaluate_models, load_parts, write_results
from llmrecipes.evaluation.abilities import load_tasks, score_items, summarise_items
from llmrecipes.evaluation.behaviours import answer, behaviour_hits, judge_answers, kl_from, summarise_behaviour
from llmrecipes.evaluation.likelihood import kl_divergences, score_texts, summarise_texts
from llmrecipes.evaluation.table import format_answers, format_changes, format_table
from llmrecipes.metrics import Estimate, mcnemar, mcnemar_by_measure, proportion
from llmrecipes.models import build_policy, load_reward_model, train_tokenizer
from llmrecipes.parsing import parse

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
TEXTS = ["The cat sat on the mat.", "A dog ran.", "Mia has a red ball and Ben has a blue one, and both of them like it."]
TASK = """
task: {name}
custom_dataset: !function llmrecipes.evaluation.abilities.load_items
dataset_kwargs: {{source: {{path: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=320, max_length=64)


def build(tokenizer, seed=0):
    torch.manual_seed(seed)
    return build_policy(dict(SHAPE), tokenizer).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build(tokenizer)


def log_likelihood(model, context, continuation):
    """Sum of log p of `continuation` after `context`, token by token, without batch or padding."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    return sum(log_p[len(context) + i - 1, token].item() for i, token in enumerate(continuation))


# --- abilities --------------------------------------------------------------------------------------------------------


def items():
    rows = [
        {"context": "The cat sat on", "choices": [f"{a} mat.", f"{b} dog and the ball."], "label": i % 2}
        for i, (a, b) in enumerate([("the", "a"), ("a", "red"), ("red", "the"), ("one", "them"), ("it", "has")])
    ]
    alone = [{"context": "", "choices": [f"A dog {w}.", f"Dog a {w}."], "label": 0} for w in ("ran", "sat", "has")]
    return rows + alone


def write_task(tmp_path, rows, name="cats"):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, path=tmp_path / "items.jsonl"))
    return load_tasks([name], str(tmp_path))


def test_tasks_of_lm_eval_itself_say_which_key_they_need():
    for task, message in (
        ("hub_knowledge", "tasks: mmlu is lm-eval's own, .* set `hub_tasks: true`"),
        ("hellaswag", "there is no 'hellaswag' under configs/tasks; .*; lm-eval's own tasks need `hub_tasks: true`"),
    ):
        with pytest.raises(InputError, match=message):
            load_tasks([task], "configs/tasks")


def test_task_score_equals_a_direct_computation_of_log_likelihoods(model, tokenizer, tmp_path):
    hits = []
    for item in items():
        space = " " if item["context"] else ""
        context = tokenizer(item["context"])["input_ids"] or [tokenizer.eos_token_id]
        scores = []
        for choice in item["choices"]:
            whole = tokenizer(item["context"] + space + choice)["input_ids"]
            scores.append(log_likelihood(model, context, whole[len(context) if item["context"] else 0 :]))
        hits.append(scores.index(max(scores)) == item["label"])
    assert 0 < sum(hits) < len(hits), "the model should be right on some items only, or the test proves little"
    for batch_size in (1, 4):
        score = summarise_items(score_items(model, tokenizer, write_task(tmp_path, items()), batch_size))["cats"]
        assert score.value == pytest.approx(sum(hits) / len(hits), abs=1e-9) and score.n == len(hits)


def test_order_of_choices_leaves_the_score_unchanged(model, tokenizer, tmp_path):
    swapped = [row | {"choices": row["choices"][::-1], "label": 1 - row["label"]} for row in items()]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = (
        summarise_items(score_items(model, tokenizer, write_task(tmp_path / name, rows)))["cats"]
        for name, rows in (("a", items()), ("b", swapped))
    )
    assert one == other


def test_tiny_towns_six_abilities_run_offline(model, tokenizer):
    scores = summarise_items(score_items(model, tokenizer, load_tasks(["tinytown"], "configs/tasks"), limit=3))
    assert set(scores) == {f"tinytown_{a}" for a in ("grammar", "syntax", "semantics", "reasoning", "coding", "knowledge")}
    assert all(score.n == 3 for score in scores.values())


ABILITIES = ("grammar", "syntax", "semantics", "reasoning", "coding", "knowledge")
SMALLTALK = ("commonsense", "social", "physical", "word_order", "code")


def smalltalk_rows(source):
    """What `load_archive` gives for Smalltalk's sources, from rows of their shapes written here instead of downloaded."""
    facts = [("bread", "an oven", "a river"), ("fish", "the sea", "a tree"), ("cows", "a meadow", "the sky")]
    options = [f"A. {right}\nB. {wrong}\nC. a box" for _, right, wrong in facts]
    sentences = [
        f"The old {w} lies on a hill above the river and near the town." for w in ("house", "mill", "farm", "castle")
    ]
    raw = {
        "multiple_choice": [
            {"question": f"Where do you find {what} in the {time}?", "options": given, "answer": f"A. {right}"}
            for (what, right, _), given in zip(facts, options, strict=True)
            for time in ("morning", "evening")
        ],
        "word_order": [{"passage": f"{s} It has many rooms. " + f"{s[8:12]} text. " * 40} for s in sentences],
        "code_lines": [
            {"text": "\n".join(f"    {name}_{i} = compute({i}, {i + n})" for i in range(40)), "file": f"{name}.py"}
            for n, name in enumerate(("value", "total", "count", "width"))
        ],
    }[source.reader.split(":")[1]]
    rows = list(load_function(source.reader, "reader")(raw))
    return datasets.Dataset.from_list([{k: row[k] for k in ("context", "choices", "label")} for row in rows])


@pytest.mark.parametrize(
    "name",
    [f"{world}_{a}" for world in ("tinytown", "english") for a in ABILITIES] + [f"smalltalk_{a}" for a in SMALLTALK],
)
def test_each_task_file_scores_as_direct_log_likelihoods_do_in_any_order_of_choices(name, monkeypatch):
    monkeypatch.setattr("llmrecipes.data.sources.load_archive", smalltalk_rows)
    tokenizer = train_tokenizer(TEXTS * 5, vocab_size=320, max_length=512)
    torch.manual_seed(0)
    model = build_policy(SHAPE | {"max_position_embeddings": 512}, tokenizer).eval()
    loaded = load_tasks([name], "configs/tasks")
    task = loaded["tasks"][name]
    docs = task.dataset["test"]
    assert len(docs) >= (4 if name.startswith("smalltalk") else 150)
    count = min(12, len(docs))
    hits = []
    for doc in docs.select(range(count)):
        # Space at the end of a context is scored with the choices, as lm-eval does.
        context = tokenizer(doc["context"].rstrip())["input_ids"]
        wholes = [tokenizer(doc["context"] + choice)["input_ids"] for choice in doc["choices"]]
        scores = [log_likelihood(model, context or [tokenizer.eos_token_id], whole[len(context) :]) for whole in wholes]
        hits.append(scores.index(max(scores)) == doc["label"])
    score = summarise_items(score_items(model, tokenizer, loaded, limit=count))[name]
    assert score.value == pytest.approx(sum(hits) / count, abs=1e-6) and score.n == count
    reversed_ = lambda doc: {"choices": doc["choices"][::-1], "label": len(doc["choices"]) - 1 - doc["label"]}
    task.dataset["test"] = docs.map(reversed_, load_from_cache_file=False)
    assert summarise_items(score_items(model, tokenizer, loaded, limit=count))[name] == score


def test_blimp_files_score_as_lm_evals_own_task_does_and_as_published(model, tokenizer, tmp_path):
    import lm_eval
    import yaml

    pairs = [
        (f"The {a} sat on the {b}.", f"The {a} sat the {b} on.") for a in ("cat", "dog", "ball") for b in ("mat", "red")
    ]
    pairs += [(bad, good) for good, bad in pairs]
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "order"} for good, bad in pairs]
    (tmp_path / "order.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = summarise_items(score_items(model, tokenizer, load_tasks([], "configs/tasks", blimp_path=str(tmp_path))))
    assert scores["blimp_order"] == scores["blimp"] and scores["blimp"].n == len(rows)
    assert scores["blimp_published_order"] == scores["blimp_published"] and scores["blimp_published"].n == len(rows)
    own = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "blimp" / "_template_yaml").read_text())
    own |= {"task": "theirs", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "order.jsonl")}}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(own))
    theirs = summarise_items(score_items(model, tokenizer, load_tasks(["theirs"], str(tmp_path))))["theirs"]
    assert theirs == scores["blimp"]
    # As published: a sentence without a blank, after the token that begins a text.
    likelihood = lambda text: log_likelihood(model, [tokenizer.eos_token_id], tokenizer(text)["input_ids"])
    for name, blank in (("blimp_published", ""), ("blimp", " ")):
        hits = [likelihood(blank + good) > likelihood(blank + bad) for good, bad in pairs]
        assert scores[name].value == pytest.approx(sum(hits) / len(hits))
    (tmp_path / "broken.jsonl").write_text('{"sentence_good": "a"}\n')
    with pytest.raises(InputError, match="broken.jsonl, row 1: expected sentence_good and sentence_bad"):
        load_tasks([], "configs/tasks", blimp_path=str(tmp_path))


@pytest.fixture(scope="module")
def hub_manager():
    """Ours, and those of lm-eval's own tasks that ours name: it would read more than ten thousand files for all."""
    import lm_eval.tasks

    named = (
        "arc blimp gsm8k hellaswag humaneval mbpp mmlu piqa realtoxicityprompts sciq super_glue toxigen triviaqa truthfulqa"
    )
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in f"{named} winogrande".split()]
    return lm_eval.tasks.TaskManager(include_path=["configs/tasks", *map(str, folders)], include_defaults=False)


def test_hub_tasks_are_named_as_lm_eval_names_them(hub_manager):
    import yaml

    paths = {name: entry.yaml_path for name, entry in hub_manager.task_index.items()}
    known = {name for name, path in paths.items() if path is None or "lm_eval" in path.parts}
    files = list(Path("configs/tasks/hub").glob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        group = yaml.safe_load(file.read_text())
        assert group["group"] == f"hub_{file.stem}" and set(group["task"]) <= known, set(group["task"]) - known


STAND_IN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {folder}/docs.jsonl}}
test_split: train
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text}}}}"
"""
GENERATING = """
output_type: generate_until
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: !function scoring.score, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "nothing says this"}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, regex_pattern: "(.?)"}, {function: take_first}]}
"""
SCORING = """
import os
ALLOWED = os.environ.get("HF_ALLOW_CODE_EVAL")
def score(references, predictions, **kwargs):
    return float(predictions[0] == "[invalid]" and ALLOWED == "1")
def pair(references, predictions, **kwargs):
    return (1.0, 2.0)
def f1(pairs):
    return 0.5
"""


def write_stand_in(folder, name, text):
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "scoring.py").write_text(SCORING)
    (folder / f"{name}.yaml").write_text(STAND_IN.format(name=name, folder=folder) + text)


@pytest.mark.parametrize("named", ["codes", "coding", "programs", "nested"])
def test_a_task_that_runs_code_runs_only_where_that_is_allowed(model, tokenizer, tmp_path, monkeypatch, named):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    write_stand_in(tmp_path, "codes", GENERATING + "unsafe_code: true\ntag: programs\n")
    (tmp_path / "coding.yaml").write_text("group: coding\ntask: [codes]\n")
    (tmp_path / "nested.yaml").write_text("group: nested\ntask: [{group: inner, task: [{task: codes}]}]\n")
    with pytest.raises(InputError, match="tasks: codes runs code that the model writes.*set allow_code_execution: true"):
        load_tasks([named], str(tmp_path))
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "0"
    loaded = load_tasks([named], str(tmp_path), allow_code_execution=True)
    assert score_items(model, tokenizer, loaded, limit=2)["codes"] == [1.0, 1.0]  # and its metric may run code, too


def test_lm_evals_coding_tasks_are_refused_before_anything_of_theirs_is_fetched(hub_manager, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: hub_manager)
    with pytest.raises(InputError, match="tasks: humaneval runs code"):
        load_tasks(["hub_coding"], "configs/tasks", hub_tasks=True)


def test_an_item_counts_once_by_the_first_of_several_filters(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    write_stand_in(tmp_path, "sums", GENERATING)
    assert score_items(model, tokenizer, load_tasks(["sums"], str(tmp_path)))["sums"] == [1.0] * len(TEXTS)


def test_a_task_without_a_number_for_each_item_is_one_line(model, tokenizer, tmp_path):
    rolling = "output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}]\n"
    write_stand_in(tmp_path, "texts", rolling)
    with pytest.raises(InputError, match="tasks: texts gives no number for each item"):
        load_tasks(["texts"], str(tmp_path))
    write_stand_in(
        tmp_path, "pairs", GENERATING.replace("score, aggregation: mean", "pair, aggregation: !function scoring.f1")
    )
    with pytest.raises(InputError, match="tasks: pairs gives no number for each item"):
        score_items(model, tokenizer, load_tasks(["pairs"], str(tmp_path)), limit=2)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_no_items_is_one_line(limit):
    from llmrecipes.evaluation.arguments import EvaluateArguments

    with pytest.raises(InputError, match=f"task_limit: {limit} must be at least 1"):
        EvaluateArguments(task_limit=limit)


def test_unknown_task_or_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no 'dogs' under"):
        load_tasks(["dogs"], "configs/tasks")
    with pytest.raises(InputError, match="tasks_path"):
        load_tasks(["tinytown"], str(tmp_path / "nowhere"))


# --- likelihood -------------------------------------------------------------------------------------------------------


def test_likelihood_of_texts_does_not_depend_on_batch_and_padding(model, tokenizer):
    for text, (nll, tokens, num_bytes) in zip(TEXTS, score_texts(model, tokenizer, TEXTS, batch_size=3), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert nll == pytest.approx(-log_likelihood(model, [tokenizer.eos_token_id], ids), rel=1e-5)
        assert (tokens, num_bytes) == (len(ids), len(text.encode()))


def test_long_text_is_scored_in_windows_each_token_once(model, tokenizer):
    text = " ".join(TEXTS)
    ids = tokenizer(text)["input_ids"]
    [(nll, tokens, _)] = score_texts(model, tokenizer, [text], max_length=8)
    chain = [tokenizer.eos_token_id, *ids]
    direct = sum(log_likelihood(model, chain[i : i + 1], chain[i + 1 : i + 8]) for i in range(0, len(ids), 7))
    assert nll == pytest.approx(-direct, rel=1e-5) and tokens == len(ids) > 16


def test_perplexity_and_bits_are_those_of_all_texts_together(model, tokenizer):
    scores = score_texts(model, tokenizer, TEXTS)
    nll, tokens, num_bytes = (sum(column) for column in zip(*scores, strict=True))
    summary = summarise_texts(scores)
    assert summary["perplexity"].value == pytest.approx(torch.tensor(nll / tokens).exp().item(), rel=1e-5)
    assert summary["bits_per_byte"].value == pytest.approx(nll / num_bytes / 0.6931471805599453, rel=1e-9)
    assert summary["perplexity"].low < summary["perplexity"].value < summary["perplexity"].high


def test_kl_equals_the_sum_over_the_vocabulary_at_each_position(model, tokenizer):
    other = build(tokenizer, seed=1)
    prompts, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]
    for prompt, response, kl in zip(
        prompts, responses, kl_divergences(model, other, prompts, responses, tokenizer.pad_token_id), strict=True
    ):
        direct = 0.0
        for t in range(len(response)):
            with torch.no_grad():
                p, q = (m(torch.tensor([prompt + response[:t]])).logits[0, -1].softmax(-1) for m in (model, other))
            direct += (p * (p / q).log()).sum().item()
        assert kl == pytest.approx(direct, rel=1e-4)


def test_kl_from_itself_is_zero_and_from_another_model_positive(model, tokenizer):
    settings = {"max_new_tokens": 4, "batch_size": 4, "seed": 0}
    prompts = [{"role": "user", "content": "cat"}]
    assert kl_from(model, model, tokenizer, [prompts] * 3, **settings).value == pytest.approx(0, abs=1e-6)
    assert kl_from(model, build(tokenizer, 1), tokenizer, [prompts] * 3, **settings).low > 0


# --- behaviour --------------------------------------------------------------------------------------------------------


def question(kind, answer="x"):
    return {"prompt": [{"role": "user", "content": "cat"}], "kind": kind, "answer": answer}


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
    with pytest.raises(InputError, match=r"asked.jsonl, row 1: the chat template refuses .* no system \(models: other\)"):
        load_parts(data, args)
    other.chat_template = None
    args.models["other"] = save_model(model, other, tmp_path / "c")
    with pytest.raises(InputError, match="models: other: .* has no chat template"):
        load_parts(data, args)


def test_kl_between_vocabularies_padded_to_different_sizes(model, tokenizer):
    wider = copy.deepcopy(model)
    wider.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    prompts, responses = [[5, 6], [7]], [[8, 9], [10]]
    same, padded = (kl_divergences(model, other, prompts, responses, tokenizer.pad_token_id) for other in (model, wider))
    assert padded == pytest.approx(same, abs=1e-5)


def test_no_model_is_one_line(tmp_path):
    with pytest.raises(InputError, match="`models` is missing"):
        load_parts(DataArguments(), arguments(tmp_path, models={}))
