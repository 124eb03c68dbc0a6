"""Ability tasks: our own and lm-eval's, scored as direct log-likelihoods; those that run code or do not exist."""

import json
import os
from pathlib import Path

import datasets
import pytest
import torch
from evaluation_toys import SHAPE, TEXTS, build, log_likelihood

from llmrecipes.config import InputError, load_function
from llmrecipes.evaluation.abilities import load_tasks, score_items, summarise_items
from llmrecipes.models import build_policy
from llmrecipes.tokenizers import train_tokenizer

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


@pytest.fixture(scope="module")
def model(tokenizer):
    return build(tokenizer)


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


def test_unknown_task_or_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no 'dogs' under"):
        load_tasks(["dogs"], "configs/tasks")
    with pytest.raises(InputError, match="tasks_path"):
        load_tasks(["tinytown"], str(tmp_path / "nowhere"))
