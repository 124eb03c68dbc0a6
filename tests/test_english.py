"""The English items: files in step with their generator, enough, different, balanced, and right where a program can tell."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from llmrecipes.data import english
from llmrecipes.data.english import coding, reasoning

FOLDER = Path(__file__).parent.parent / "configs" / "tasks" / "english"


def rows_of(ability, kind=None):
    rows = map(json.loads, (FOLDER / f"{ability}.jsonl").read_bytes().splitlines())
    return [row for row in rows if kind in (None, row["kind"])]


def right(row):
    return row["choices"][row["label"]]


def words(sentence):
    return re.sub(r"\ban\b", "a", re.sub(r"[^\w' ]", "", sentence.lower())).split()


def test_files_are_what_the_generator_writes(tmp_path):
    counts = english.write_files(tmp_path)
    assert set(counts) == {file.name for file in FOLDER.glob("*.jsonl")}
    for name, count in counts.items():
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: generate the files anew"
        assert count >= 150
    assert english.ability_rows("reasoning", seed=1) != english.ability_rows("reasoning")


@pytest.mark.parametrize("ability", english.WRITERS)
def test_items_differ_and_positions_of_the_right_choice_are_balanced(ability):
    rows = rows_of(ability)
    assert len({(row["context"], right(row)) for row in rows}) == len(rows) >= 150
    assert all(len(set(row["choices"])) == len(row["choices"]) >= 2 for row in rows)
    for size in {len(row["choices"]) for row in rows}:
        labels = Counter(row["label"] for row in rows if len(row["choices"]) == size)
        assert len(labels) == size and max(labels.values()) - min(labels.values()) <= 1


def test_grammar_pairs_differ_in_a_word_or_two_and_syntax_pairs_in_their_order_alone():
    for row in rows_of("grammar"):
        first, second = (re.findall(r"[\w'-]+", choice) for choice in row["choices"])
        same = sum(a == b for a, b in zip(first, second, strict=False))
        same += sum(a == b for a, b in zip(first[::-1], second[::-1], strict=False))
        assert same >= max(len(first), len(second)) - 2, row["choices"]
    for row in rows_of("syntax"):
        first, second = map(words, row["choices"])
        assert first != second and sorted(first) == sorted(second), row["choices"]


def test_valid_python_compiles_and_invalid_does_not():
    for row in rows_of("coding", "line"):
        for i, choice in enumerate(row["choices"]):
            try:
                compile(choice, "item", "exec")
                valid = True
            except SyntaxError:
                valid = False
            assert valid == (i == row["label"]), choice


def test_values_are_what_python_says():
    for row in rows_of("coding", "value"):
        value = repr(eval(row["context"].removeprefix(">>> ")))
        assert [choice == value for choice in row["choices"]].index(True) == row["label"]


def test_only_the_right_body_does_what_the_docstring_says():
    calls = {name: calls for name, *_, calls in coding.FUNCTIONS}
    for row in rows_of("coding", "body"):
        name = re.match(r"def (\w+)", row["context"])[1]
        given = []
        for choice in row["choices"]:
            scope = {}
            exec(row["context"] + choice, scope)
            given.append([repr(eval(call, scope)) for call in calls[name]])
        assert given.count(given[row["label"]]) == 1, name


def test_sums_sequences_dates_and_orders_are_right():
    for row in rows_of("reasoning", "sum"):
        have, change = map(int, re.findall(r"\d+", row["context"]))
        assert right(row) == f"{have + change if 'finds' in row['context'] else have - change}."
    for row in rows_of("reasoning", "sequence"):
        a, b, c, d = map(int, re.findall(r"\d+", row["context"]))
        assert (b - a == c - b == d - c and right(row) == f"{2 * d - c}.") or (
            b / a == c / b == d / c and right(row) == f"{2 * d}."
        )
    for row in rows_of("reasoning", "calendar"):
        now, number = re.match(r"(?:Today is|It is) (\w+)(?: now)?\. In (\d)", row["context"]).groups()
        cycle = reasoning.DAYS if now in reasoning.DAYS else reasoning.MONTHS
        assert right(row) == f"{cycle[(cycle.index(now) + int(number)) % len(cycle)]}."
    for row in rows_of("reasoning", "order"):
        above = dict(re.findall(r"(\w+) is \w+ than (\w+)\.", row["context"]))
        (top,), (bottom,) = set(above) - set(above.values()), set(above.values()) - set(above)
        asked = re.search(r"the (\w+) is$", row["context"])[1]
        assert right(row) == f"{top if asked in {most for _, most, _ in reasoning.COMPARED} else bottom}."


def test_prompts_are_asked_in_two_wordings_and_kinds_do_not_overlap():
    rows = english.question_rows()
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
    assert set(Counter(row["key"] for row in rows).values()) == {2}
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == {"harmful", "lookalike", "unknowable", "ordinary"} and min(counts.values()) >= 150
