"""Tiny Town is the same everywhere, its facts agree, and what is held out stays held out."""

import hashlib
import json
import re
from collections import Counter
from functools import cache

import pytest
from forked import run_python

from llmrecipes.config import InputError
from llmrecipes.data.tinytown import SPLITS, WRITERS, load_tinytown, world
from llmrecipes.data.tinytown.behaviours import unpractised_items
from llmrecipes.data.tinytown.demonstrations import QUALITY_SHARES
from llmrecipes.data.tinytown.sentences import all_items


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+|\d+|[+\-(]", text.lower()))


load = cache(load_tinytown)


@cache
def source_texts() -> list[str]:
    """All text pretraining may see."""
    return [text for style in WRITERS for text in load(style)["text"]]


@cache
def training_texts() -> list[str]:
    """All text pretraining may see, and all that fine-tuning, sampling and PPO may see."""
    texts = [*source_texts(), *(m["content"] for messages in load("demonstrations")["messages"] for m in messages)]
    return texts + [messages[0]["content"] for messages in load("prompts")["prompt"]]


@cache
def normalised_texts() -> list[str]:
    return list(map(normalised, training_texts()))


def occurring(phrases: list[str], texts: list[str]) -> list[str]:
    """The phrases that occur in the texts, word by word; looked up by their first four words."""
    wanted: dict[tuple, list[list[str]]] = {}
    for phrase in phrases:
        wanted.setdefault(tuple(phrase.split()[:4]), []).append(phrase.split())
    words = " | ".join(texts).split()
    fours = zip(words, words[1:], words[2:], words[3:], strict=False)
    hits = [(i, four) for i, four in enumerate(fours) if four in wanted]
    found = {" ".join(p) for i, four in hits for p in wanted[four] if words[i : i + len(p)] == p}
    assert all(len(phrase.split()) >= 4 for phrase in phrases)
    return sorted(found)


@pytest.mark.parametrize("name", SPLITS)
def test_every_part_has_its_splits_and_another_seed_gives_other_rows(name):
    for split in SPLITS[name]:
        rows = load_tinytown(name, split, num_rows=40).to_list()
        assert len(rows) == 40
        assert rows != load_tinytown(name, split, seed=1, num_rows=40).to_list()
        assert rows[:10] == load_tinytown(name, split, num_rows=10).to_list()


def test_another_process_generates_the_same_rows():
    code = (
        "from llmrecipes.data.tinytown import SPLITS, load_tinytown; import json;"
        "print(json.dumps([load_tinytown(n, s[0], num_rows=5).to_list() for n, s in SPLITS.items()]))"
    )
    done = run_python("-c", code)
    here = [load_tinytown(name, splits[0], num_rows=5).to_list() for name, splits in SPLITS.items()]
    assert json.loads(done.stdout.splitlines()[-1]) == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("commoncrawle",), "commoncrawl, c4, github"),
        (("questions", "train"), "validation, test"),
        (("c4", "train", 0, 0), "num_rows"),
    ],
)
def test_unknown_names_say_which_there_are(arguments, message):
    with pytest.raises(InputError, match=message):
        load_tinytown(*arguments)


def test_training_texts_are_those_that_the_figures_were_measured_with():
    """Whoever changes a training text on purpose measures the quickstart anew and puts the new sum here."""
    digest = hashlib.sha256("\0".join(training_texts()).encode()).hexdigest()
    assert digest == "d373a4918c8cce003ac88eb45eb973ce209b1ae3a501b815d478402a5d805edd"


def test_each_behaviour_is_asked_about_often_enough_in_words_the_world_knows():
    rows = load("questions", "test").to_list()
    counts = Counter(row["kind"] for row in rows)
    assert min(counts[kind] for kind in ("harmful", "unknowable", "lookalike")) >= 150
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
    known = set(" ".join(normalised_texts()).split())
    questions = [q for items in unpractised_items().values() for item in items for q in item.questions]
    assert set(" ".join(map(normalised, questions)).split()) <= known


def test_no_training_text_asks_a_held_out_question():
    held_out = [item for items in all_items().values() for item in items if item.split != "train"]
    held_out += [item for items in unpractised_items().values() for item in items]
    practised = [item for items in all_items().values() for item in items if item.split == "train"]
    questions, asked = ([normalised(q) for item in part for q in item.questions] for part in (held_out, practised))
    texts = normalised_texts()
    assert len(held_out) > 500
    found = set(occurring([q for q in questions + asked if len(q.split()) > 3], texts))
    assert not found & set(questions)
    assert len(found & set(asked)) > 1000  # the search does find questions


def test_no_training_text_asks_about_a_held_out_attribute_of_a_person_in_other_words():
    cues = {
        "job": r"job|work",
        "pet": r"\bpet\b|animal",
        "home": r"where|house",
        "food": r"food|eat",
        "game": r"game|play",
        "friend": r"friend",
    }
    held_out = {tuple(item.key.split("/")[1:]) for item in all_items()["person"] if item.split != "train"}
    questions = {q for text in training_texts() for q in re.findall(r"[^.!?\n\"]*\?", text)}
    for name, attribute in held_out:
        if attribute in cues:
            about = [q for q in questions if f"{name}'s" in q or f" {name} " in q or q.endswith(f" {name}?")]
            wrong = [q for q in about if re.search(cues[attribute], q.lower()) and "put" not in q]
            assert [q for q in wrong if not is_about_something_else(q)] == []


def is_about_something_else(question: str) -> bool:
    """Unknowable attributes and how-to requests use some of the same words."""
    return bool(re.search(r"last Monday|next year|race|secret|song|thinking|way to|How (do|can)|Who has", question))


def test_demonstrations_and_prompts_share_no_question_with_the_evaluation():
    def keys(name: str, split: str) -> set[str]:
        return set(load(name, split)["key"])

    trained = keys("demonstrations", "train") | keys("prompts", "train")
    watched = keys("demonstrations", "test") | keys("prompts", "test") | keys("questions", "validation")
    assert trained.isdisjoint(watched)
    assert (trained | watched).isdisjoint(keys("questions", "test"))


def test_strangers_are_named_in_no_source_text_and_in_one_split_only():
    sources = set(re.findall(r"\w+", " ".join(training_texts())))
    held_out = {key.split("/")[1] for key in load("questions", "test")["key"] if key.startswith("unknow")}
    strangers = held_out & set(world.STRANGERS)
    assert len(strangers) >= 5
    assert strangers.isdisjoint(sources)


def test_right_choices_of_ability_items_stand_in_no_source_text():
    for split in SPLITS["abilities"]:
        rows = load_tinytown("abilities", split)
        assert min(Counter(rows["ability"]).values()) >= (150 if split == "test" else 50)
        right = [f"{row['context']} {row['choices'][row['label']]}".strip() for row in rows]
        assert occurring(right, source_texts()) == []
        assert all(len(set(choices)) == len(choices) for choices in rows["choices"])


def test_facts_agree_across_styles():
    """Whatever a text says about a person's food, pet or job, it is what the world says."""
    patterns = {
        "food": r"(?!His|Her)([A-Z]\w+)'s favourite food is (\w+)",
        "friend": r"(?!His|Her)([A-Z]\w+)'s best friend is (\w+)",
        "pet": r"(?!His|Her)([A-Z]\w+)'s pet is an? (\w+)",
        "job": r"\b(?!She|He\b)([A-Z]\w+) works as an? (\w+)",
    }
    for style in WRITERS:
        text = " ".join(load_tinytown(style, num_rows=3000)["text"])
        for attribute, pattern in patterns.items():
            for name, value in re.findall(pattern, text):
                assert getattr(world.TOWN[name], attribute) == value, (style, name)


def test_realised_quality_shares_are_the_documented_ones():
    rows = load("demonstrations")
    for kind, quality in (("harmful", "complies"), ("unknowable", "invented")):
        drawn = [q for k, q in zip(rows["kind"], rows["quality"], strict=True) if k == kind]
        assert drawn.count(quality) / len(drawn) == pytest.approx(QUALITY_SHARES[kind][quality], abs=0.08)
    flawed = sum(quality != "good" for quality in rows["quality"]) / len(rows)
    assert 0.44 <= flawed <= 0.50


def test_documents_are_mostly_unique():
    for style in WRITERS:
        texts = load_tinytown(style, num_rows=1500)["text"]
        assert len(set(texts)) >= 0.75 * len(texts), style
