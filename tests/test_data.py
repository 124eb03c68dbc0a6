"""Sources and mixtures: seeded, in proportion, and every broken input is one line that names it."""

import json

import pytest

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_mixture, load_source, load_train_eval


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def error_of(*sources, shapes=("text",), **keys):
    with pytest.raises(InputError) as caught:
        load_train_eval(DataArguments(list(sources), **keys), 0, shapes)
    return str(caught.value)


def test_mixture_realises_its_weights_and_repeats_nothing(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [{"text": f"a{i:03d}"} for i in range(300)])
    b = jsonl(tmp_path / "b.jsonl", [{"text": f"b{i:03d}"} for i in range(300)])
    mixed = list(load_mixture([DatasetSource(a, weight=3), DatasetSource(b, weight=1)], seed=1)["text"])
    assert sum(t[0] == "a" for t in mixed) == 300 and sum(t[0] == "b" for t in mixed) == 100
    assert len(set(mixed)) == len(mixed)


def test_mixture_is_seeded(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(50)])
    draw = lambda seed: list(load_mixture([DatasetSource(path)], seed)["text"])
    assert draw(1) == draw(1) != draw(2)


def test_held_out_rows_are_not_trained_on(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(50)])
    train, held_out = load_train_eval(DataArguments([path], test_split_size=10), 0, ("text",))
    assert len(held_out) == 10 and not set(train["text"]) & set(held_out["text"])


def test_broken_line_is_numbered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    assert "a.jsonl" in error_of(str(path)) and "line 2" in error_of(str(path))


def test_missing_and_empty_files(tmp_path):
    assert "does not exist" in error_of(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in error_of(str(tmp_path / "empty.jsonl"))
    assert "`datasets` is missing" in error_of()


def test_wrong_columns_names_what_is_there_and_what_was_expected(tmp_path):
    message = error_of(jsonl(tmp_path / "a.jsonl", [{"body": "x", "id": 1}]), shapes=("messages",))
    assert "body" in message and "messages" in message


def test_less_than_one_batch(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    with pytest.raises(InputError, match="3 rows are less than one batch of 8"):
        load_train_eval(DataArguments([path]), 0, ("text",), min_rows=8)


def test_unknown_kind_of_file_and_column(tmp_path):
    (tmp_path / "a.xyz").write_text("x")
    assert "unknown kind of file" in error_of(str(tmp_path / "a.xyz"))
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match="no column `body`; it has text"):
        load_source(DatasetSource(path, columns=["body"]), 0)


def test_local_folder_and_csv_and_text_files_load(tmp_path):
    (tmp_path / "d").mkdir()
    jsonl(tmp_path / "d" / "train.jsonl", [{"text": "x"}])
    (tmp_path / "a.csv").write_text("text\nhello\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert load_source(DatasetSource(str(tmp_path / "d")), 0)["text"][0] == "x"
    assert load_source(DatasetSource(str(tmp_path / "a.csv")), 0)["text"][0] == "hello"
    assert len(load_source(DatasetSource(str(tmp_path / "a.txt")), 0)) == 2


def test_foreign_shapes_become_messages(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "Say hi.", "input": "", "output": "Hi."}])
    train, _ = load_train_eval(DataArguments([path]), 0, ("messages",))
    assert train[0]["messages"] == [
        {"role": "user", "content": "Say hi."},
        {"role": "assistant", "content": "Hi."},
    ]


def test_a_folder_of_the_same_name_or_with_new_contents_is_read_anew(tmp_path):
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n---\n"
    texts = lambda folder: list(load_source(DatasetSource(str(folder)), 0)["text"])
    for name in ("a", "b"):
        (tmp_path / name / "rank").mkdir(parents=True)
        (tmp_path / name / "rank" / "README.md").write_text(readme)
        jsonl(tmp_path / name / "rank" / "train.jsonl", [{"text": name}])
        assert texts(tmp_path / name / "rank") == [name]
    jsonl(tmp_path / "a" / "rank" / "train.jsonl", [{"text": "new"}])
    assert texts(tmp_path / "a" / "rank") == ["new"]
