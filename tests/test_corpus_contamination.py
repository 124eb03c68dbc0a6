"""Documents that hold evaluation items go, whatever hides the item; others stay."""

import runpy
import unicodedata
from pathlib import Path

import pytest
from corpora import PLAIN, document, kept, run_build, write_lines
from recipe_types import recipe_types

from llmrecipes.config import InputError
from llmrecipes.corpus import contamination
from llmrecipes.corpus.contamination import build_items, evaluation_texts
from llmrecipes.corpus.hashing import tokens_of, word_hashes, words_of
from llmrecipes.parsing import parse
from llmrecipes.pipeline import PipelineArguments, plan_stages

ROOT = Path(__file__).parent.parent


def test_documents_that_hold_an_evaluation_item_go(tmp_path):
    items = [" ".join(document(1000 + i, 20).split()) for i in range(40)]
    clean_texts = [document(i) for i in range(60)]
    planted = [item.upper().replace(" ", "  \n") for item in items[:20]]
    planted += [f"{document(500 + i)} {item} {document(600 + i)}" for i, item in enumerate(items[20:])]
    rows = [{"text": text, "id": str(i)} for i, text in enumerate([*clean_texts, *planted])]
    source = {"path": str(write_lines(tmp_path / "a.jsonl", rows)), "id_column": "id"}
    found = run_build(tmp_path / "out", [source], {"task: t": items}, **PLAIN | {"near_duplicates": 0.7})
    assert kept(tmp_path / "out") == [str(i) for i in range(60)]
    reasons = found["total"]["dropped"]["decontaminate"]
    assert sum(n for n, _ in reasons.values()) == 40 and all("task: t" in reason for reason in reasons)
    assert found["evaluation"]["sets"] == {"task: t": 40}
    samples = [sample["text"] for own in found["total"]["samples"]["decontaminate"].values() for sample in own]
    shown = [" ".join(text.lower().split()) for text in samples]
    assert shown and all(any(item.lower()[:100] in text for item in items) for text in shown), "what was found"


@pytest.mark.parametrize(
    ("item", "keys"),
    [
        (
            "Send your letter to john.smith@example.org or call +49 30 1234567 before the summer ends",
            {"scrub": ["email", "phone"]},
        ),
        ("The oﬃce of the ﬁrst captain stands cafe\u0301 by cafe\u0301 near the silver bridge &amp; road", {"repair": True}),
        ("The treaty [1] was signed in 1713 [2] by several states [3] and ended the war [4]", {"quality": ["c4"]}),
        ("What _is_ the ____ of the silver_river that runs below the old bridge tonight", {}),
    ],
    ids=["scrubbed", "repaired", "citations", "marked"],
)
def test_an_item_is_found_in_documents_as_the_steps_leave_them(tmp_path, item, keys):
    """Also where the steps change its words."""
    if keys.get("repair"):
        pytest.importorskip("ftfy")
    plain = item.replace("____ ", "").replace("_is_", "is")
    texts = [f"{document(1)}\n{plain}.\n{document(2)}", document(3)]
    source = str(write_lines(tmp_path / "a.jsonl", texts))
    found = run_build(tmp_path / "out", [source], {"exam": [item]}, **PLAIN | keys)
    assert kept(tmp_path / "out") == [f"{source}#2"]
    assert found["evaluation"]["sets"] == {"exam": 1} and found["total"]["dropped"]["decontaminate"]


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: " ".join(f"{word[:2]}\u00ad{word[2:]}" for word in text.split()),
        lambda text: "\u202b" + text.replace(" ", " \u200b") + "\u202c",
        lambda text: unicodedata.normalize("NFD", text),
    ],
    ids=["soft hyphens", "no width", "accents apart"],
)
def test_characters_that_are_not_seen_hide_no_item(tmp_path, hide):
    item = "which café in the old town sells élite pâté at noon to naïve guests from abroad"
    texts = [f"{document(1)} {hide(item)} {document(2)}", document(3)]
    source = str(write_lines(tmp_path / "a.jsonl", texts))
    run_build(tmp_path / "out", [source], {"exam": [item]}, **PLAIN)
    assert kept(tmp_path / "out") == [f"{source}#2"]


def test_vowel_signs_belong_to_their_words(tmp_path):
    item = "भारत की राजधानी क्या है और वहाँ कितने लोग रहते हैं और सबसे बड़ा शहर कौन सा है"
    assert len(words_of(item)) == len(tokens_of(item)) == len(item.split())
    part = " ".join(item.split()[:8])  # more than 13 runs of letters, fewer than 13 words
    source = str(write_lines(tmp_path / "a.jsonl", [f"यह {part} नहीं", f"यह {item} नहीं"]))
    found = run_build(tmp_path / "out", [source], {"exam": [item]}, **PLAIN)
    assert kept(tmp_path / "out") == [f"{source}#1"] and found["total"]["read"][1] == 10 + 20


def test_a_document_equal_to_an_item_counts_as_contamination(tmp_path):
    source = str(write_lines(tmp_path / "a.jsonl", ["Who am I?", document(3), document(4), document(4)]))
    found = run_build(tmp_path / "out", [source], {"exam": ["Who am I?", document(3)]}, **PLAIN)["total"]["dropped"]
    assert found["decontaminate"]["nearly the same as an item of exam"][0] == 2
    assert found["exact_duplicates"]["equal to an earlier document"][0] == 1


def test_a_contaminated_document_takes_no_clean_one_with_it(tmp_path):
    item = document(7, 14)
    rows = [{"text": text, "id": name} for name, text in (("with", f"{document(1)} {item}"), ("without", document(1)))]
    source = {"path": str(write_lines(tmp_path / "a.jsonl", rows)), "id_column": "id"}
    run_build(tmp_path / "out", [source], {"exam": [item]}, **PLAIN | {"near_duplicates": 0.7})
    assert kept(tmp_path / "out") == ["without"]


def test_a_phrase_of_many_documents_is_no_contamination(tmp_path):
    phrase = "permission is hereby granted free of charge to any person obtaining a copy of this software and so on"
    texts = [f"{document(i)} {phrase}" for i in range(12)]
    path = str(write_lines(tmp_path / "a.jsonl", texts))
    found = run_build(tmp_path / "out", [path], {"set": [f"{phrase} {document(99)}"]}, **PLAIN)
    assert len(kept(tmp_path / "out")) == 12
    assert found["evaluation"]["common_samples"][0] in phrase
    strict = run_build(tmp_path / "strict", [path], {"set": [phrase]}, contamination_common=0, **PLAIN)
    assert kept(tmp_path / "strict") == [] and strict["evaluation"]["common_ngrams"] == 0


def test_an_item_that_many_documents_hold_whole_is_contamination(tmp_path):
    question = "which of the seven hills of rome is named after a god of the sky answer the capitoline hill"
    other = "which of the rivers of the old world carries more water than any other answer the congo river it is"
    short = "how old is the oldest tree of all"  # a single run of words
    texts = [f"{document(i)} {question}" for i in range(12)] + [f"{document(20)} {' '.join(question.split()[:-3])}"]
    path = str(write_lines(tmp_path / "a.jsonl", [*texts, document(21)]))
    found = run_build(tmp_path / "out", [path], {"set": [question, other]}, **PLAIN)
    assert len(kept(tmp_path / "out")) == 2 and found["evaluation"]["common_ngrams"] > 0
    path = str(write_lines(tmp_path / "b.jsonl", [f"{document(i)} {short.upper()}?" for i in range(12)] + [document(30)]))
    found = run_build(tmp_path / "short", [path], {"set": [short]}, **PLAIN)
    assert len(kept(tmp_path / "short")) == 1 and found["total"]["dropped"]["decontaminate"]


def test_items_too_short_are_counted_and_others_found_whole():
    items, short = build_items(["one two three", "a b c d e f g h i"], 13)
    assert short == 1 and list(items.tables) == [9]
    assert len(items.hits(word_hashes("and A, b; c d e f g h I too"))) == 1
    assert len(items.hits(word_hashes("a b c d e f g h"))) == 0


def test_evaluation_sets_are_those_of_the_yaml(tmp_path):
    write_lines(tmp_path / "held.jsonl", ["a text that is held out"])
    write_lines(tmp_path / "ask.jsonl", [{"prompt": [{"role": "user", "content": "What is it?"}], "answer": "x"}])
    (tmp_path / "tasks").mkdir()
    rows = [{"context": "The cat", "choices": ["sits", "sit"], "label": 0}]
    write_lines(tmp_path / "items.jsonl", rows)
    task = (
        ROOT / "configs" / "tasks" / "tinytown" / "_items.yaml"
    ).read_text() + f"task: mine\ndataset_kwargs:\n  source: {{path: {tmp_path}/items.jsonl}}\n"
    (tmp_path / "tasks" / "mine.yaml").write_text(task)
    (tmp_path / "evaluate.yaml").write_text(
        f"datasets: [{{path: {tmp_path}/ask.jsonl}}]\neval_datasets: [{{path: {tmp_path}/held.jsonl}}]\n"
        f"tasks: [mine]\ntasks_path: {tmp_path}/tasks\n"
    )
    found = evaluation_texts([str(tmp_path / "evaluate.yaml")])
    texts = [" ".join(text.split()) for own in found.values() for text in own]
    assert texts == ["What is it?", "a text that is held out", "The cat sits"]


def test_a_build_is_one_of_its_evaluation_sets(tmp_path, monkeypatch):
    """Another set is another build. Killed before its items are noted, it is none to go on with."""
    rows, items = (write_lines(tmp_path / name, [document(i)]) for i, name in enumerate(("a.jsonl", "items.jsonl")))
    (tmp_path / "evaluate.yaml").write_text(f"eval_datasets: [{{path: {items}}}]\nmodels: {{}}\n")
    argv = ["--sources", str(rows), "--output_dir", str(tmp_path / "out"), "--near_duplicates", "null", "--repair", "false"]
    main, begun = runpy.run_path(str(ROOT / "recipes" / "corpus.py"))["main"], []
    build = lambda: main(*parse(*recipe_types("corpus"), argv=[*argv, "--decontaminate", str(tmp_path / "evaluate.yaml")]))
    real = contamination.save_items
    noted = lambda root, *args: begun.append((root / "job.json").exists()) or real(root, *args)
    monkeypatch.setattr(contamination, "save_items", noted)
    build()
    assert begun == [False] and kept(tmp_path / "out")
    with pytest.raises(SystemExit):  # finished
        build()
    write_lines(items, [document(0)])
    with pytest.raises(InputError, match="holds another run"):
        build()


def test_a_chain_knows_its_finished_corpus(tmp_path):
    """The recipe takes the evaluation sets, not the file that names them, for a part of the build; so must the chain."""
    rows, items = (write_lines(tmp_path / name, [document(i)]) for i, name in enumerate(("a.jsonl", "items.jsonl")))
    (tmp_path / "evaluate.yaml").write_text(f"eval_datasets: [{{path: {items}}}]\nmodels: {{}}\n")
    (tmp_path / "corpus.yaml").write_text(
        f"sources: [{rows}]\noutput_dir: {tmp_path}/out\nnear_duplicates: null\nrepair: false\n"
        f"decontaminate: [{tmp_path}/evaluate.yaml]\n"
    )
    chain = PipelineArguments(stages=["corpus"], output_dir=str(tmp_path))
    planned = lambda: plan_stages(chain, str(tmp_path / "pipeline.yaml"), force=False)[0].reason
    (tmp_path / "pipeline.yaml").write_text(f"stages: [corpus]\noutput_dir: {tmp_path}\n")
    main = runpy.run_path(str(ROOT / "recipes" / "corpus.py"))["main"]
    main(*parse(*recipe_types("corpus"), argv=["--config", str(tmp_path / "corpus.yaml")]))
    assert planned() == "skip: finished, nothing changed"
    (tmp_path / "evaluate.yaml").write_text(f"eval_datasets: [{{path: {items}}}]\nmodels: {{a: b}}\n")
    assert planned() == "skip: finished, nothing changed"
    write_lines(items, [document(0)])
    assert planned() == f"run: {items} has changed, which only --force overwrites"


ITEM = document(7, 30)


ASKED = {"messages": [{"role": "user", "content": [{"type": "text", "text": ITEM}]}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ITEM},
        {"prompt": "Hi", "completion": ITEM},
        {"conversations": [{"from": "human", "value": ITEM}, {"from": "gpt", "value": "Yes"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ITEM}]},
        {"query": ITEM, "response": "Yes"},
        {"question": "What?", "answer": ITEM},
        {"instruction": "Do it", "input": ITEM, "output": "Yes"},
        {"prompt": "Hi", "chosen": ITEM, "rejected": "No"},
        ASKED,
    ],
)
def test_an_evaluation_item_is_found_whatever_shape_its_row_has(tmp_path, row):
    rows = write_lines(tmp_path / "a.jsonl", [row])
    (tmp_path / "evaluate.yaml").write_text(f"datasets: {rows}\n")
    ((text,),) = evaluation_texts([str(tmp_path / "evaluate.yaml")]).values()
    assert ITEM in text


def test_an_evaluation_set_without_items_is_one_line(tmp_path):
    rows = write_lines(tmp_path / "a.jsonl", [{"title": "no question"}])
    for source, message in (
        (f"{{path: {rows}}}", "a.jsonl, row 1: columns are title"),
        (f"{{path: {rows}, drop_bad_rows: true}}", "decontaminate: prompts: .*a.jsonl: has no item with a text"),
    ):
        (tmp_path / "evaluate.yaml").write_text(f"datasets: [{source}]\n")
        with pytest.raises(InputError, match=message):
            evaluation_texts([str(tmp_path / "evaluate.yaml")])
