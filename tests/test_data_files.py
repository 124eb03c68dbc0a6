"""Files and folders as sources: which files are rows of which split, packed and damaged ones, cells and lines."""

import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from data_toys import error_of, jsonl
from datasets import Dataset

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_rows, load_source, load_train_eval
from llmrecipes.data.streams import text_source
from llmrecipes.keys import keys_of
from llmrecipes.parsing import Options, collect
from llmrecipes.preflight import places, remarks


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


def test_cells_that_look_like_numbers_or_nothing_stay_texts(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer,level\n"6 * 7?",42,2\n"What is it?",None,\n"Is it,\n so?",NA,3\n')
    rows = load_rows(DatasetSource(str(tmp_path / "a.csv")), 0, ("messages",))
    assert [row["messages"][1]["content"] for row in rows] == ["42", "None", "NA"] and rows["level"] == [2, None, 3]
    assert rows[2]["messages"][0]["content"] == "Is it,\n so?"
    (tmp_path / "b.csv").write_text("question,answer\nHi,Yes, please\n")
    assert "b.csv, row 1: has more cells than the header" in error_of(str(tmp_path / "b.csv"), shapes=("messages",))
    (tmp_path / "c.csv").write_text("prompt,prompt,completion\nHi,Ho,Yes?\n")
    assert "c.csv: has the column 'prompt' twice" in error_of(str(tmp_path / "c.csv"), shapes=("prompt-completion",))


def test_endings_in_capitals_and_broken_archives(tmp_path):
    (tmp_path / "A.CSV").write_text("prompt,completion\nHi,Yes?\n")
    assert load_rows(DatasetSource(str(tmp_path / "A.CSV")), 0, ("prompt-completion",))["completion"] == ["Yes?"]
    whole = gzip.compress(b'{"text": "a"}\n' * 9)
    for content in (whole[:-12], whole[:20] + b"!" + whole[21:], b'{"text": "a"}\n'):
        (tmp_path / "b.jsonl.gz").write_bytes(content)
        assert "b.jsonl.gz: is not a complete gzip file (" in error_of(str(tmp_path / "b.jsonl.gz"), shapes=("text",))


def test_files_in_other_clothes_are_one_line_that_says_what_to_do(tmp_path):
    for name, content, told in (
        ("list.jsonl", b'[{"text": "x"}]', "line 1: expected an object .* belongs into a file that is called .json"),
        ("lines.jsonl", b'[\n{"text": "x"}\n]', "line 1: not valid JSON .* belongs into a file that is called .json"),
        ("wide.csv", "text,n\nx,1\n".encode("utf-16"), "wide.csv: is UTF-16, not UTF-8; save it as UTF-8"),
        ("wide.jsonl", '{"text": "x"}\n'.encode("utf-16"), "wide.jsonl: is UTF-16, not UTF-8"),
        ("page.txt", b"%PDF-1.4\nendobj\n", "page.txt: is a PDF, as its first bytes say; give its text in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        assert re.search(told, error_of(str(tmp_path / name))), name


def test_a_folder_of_files_that_are_no_text_names_the_file(tmp_path):
    for name, content, told in (
        (
            "late.txt",
            b"fine\n\xe9t\xe9\n",
            "late.txt, row 2: is not UTF-8 (invalid continuation byte at byte 0); convert it",
        ),
        ("page.txt", b"%PDF-1.4\nendobj\n", "page.txt: is a PDF, as its first bytes say"),
        ("page.pdf", b"%PDF-1.4\nendobj\n", "has no column of text or numbers"),
    ):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / name).write_bytes(content)
        assert told in error_of(str(tmp_path / "a"), shapes=("text",)), name
        with pytest.raises(InputError):
            list(text_source(DatasetSource(str(tmp_path / "a")), 0).texts())
        shutil.rmtree(tmp_path / "a")


def test_json_files_hold_a_list_or_one_row_a_line(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    for content in (json.dumps(rows), json.dumps({"version": 1, "data": rows}, indent=1), '{"text": "a"}\n{"text": "b"}\n'):
        (tmp_path / "a.json").write_text(content)
        assert load_rows(DatasetSource(str(tmp_path / "a.json")), 0, ("text",))["text"] == ["a", "b"]
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": ')
    assert "a.json, row 2: is not valid JSON" in error_of(str(tmp_path / "a.json"))
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n")
    assert "a.jsonl, line 1: not valid JSON" in error_of(str(tmp_path / "a.jsonl"))


def test_slices_of_a_local_file_are_honoured(tmp_path):
    rows = [{"text": f"Line {i}."} for i in range(10)]
    paths = [jsonl(tmp_path / "a.jsonl", rows)]
    (tmp_path / "a.csv").write_text("text\n" + "".join(row["text"] + "\n" for row in rows))
    (tmp_path / "a.txt").write_text("\n".join(row["text"] for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "train.jsonl", rows)
    paths += [str(tmp_path / name) for name in ("a.csv", "a.txt", "a.parquet", "saved", "splits", "folder")]
    for path in paths:
        texts = lambda split, path=path: load_rows(DatasetSource(path, split=split), 0, ("text",))["text"]
        assert list(texts("train[:20%]")) == ["Line 0.", "Line 1."] and list(texts("train[8:]")) == ["Line 8.", "Line 9."]
        data = DataArguments([{"path": path, "split": "train[:50%]"}], [{"path": path, "split": "train[50%:]"}])
        train, held_out = load_train_eval(data, 0, ("text",))
        assert len(train) == len(held_out) == 5 and not set(train["text"]) & set(held_out["text"])


@pytest.mark.parametrize("split", ["test", "train[:50%", "train[:50%]+test", "validation[:2]"])
def test_a_split_that_a_file_does_not_have_is_refused(tmp_path, split):
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"Line {i}."} for i in range(10)])
    assert "a.jsonl: has no split" in error_of({"path": path, "split": split})


def unread(**source) -> str:
    return "".join(remarks(collect(Options({"datasets": [json.dumps([source])]}), keys_of(DataArguments))[0]))


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv.gz", ".txt", ".parquet"])
def test_all_files_that_are_named_after_a_split_are_read_and_others_are_named(tmp_path, end, capsys):
    for name in ("train", "train2", "train-extra", "test", "dev", "other"):
        write_rows(tmp_path / f"{name}{end}", [{"text": name}])
    for split, names in {"train": {"train", "train2", "train-extra"}, "test": {"test"}, "test+train[:1]": None}.items():
        source = DatasetSource(str(tmp_path), split=split)
        got = set(load_source(source, 0)["text"])
        assert got == names or not names and len(got) == 2
        assert sorted(text_source(source, 0).texts()) == sorted(got)
        assert f"of no split: other{end};" in unread(path=str(tmp_path), split=split)
    (tmp_path / f"other{end}").unlink()
    assert not unread(path=str(tmp_path))


def test_a_link_to_a_file_that_is_not_there_is_named_and_not_left_out(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "test-b.jsonl").symlink_to("gone")  # of another split
    (tmp_path / "notes.md").symlink_to("gone")

    def problems(split):
        given = Options({"datasets": [json.dumps([{"path": str(tmp_path), "split": split}])]})
        return [text for _, text in places.sources(collect(given, keys_of(DataArguments))[0])]

    assert problems("train") == []
    assert [text.partition(": ")[0] for text in problems("test")] == [str(tmp_path / "test-b.jsonl")]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.jsonl.gz").symlink_to("gone")
    assert problems("train[:50%]")[0].startswith(f"{tmp_path}/more/c.jsonl.gz: is a link to a file")


def test_no_file_is_called_unread_that_is_read(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "my-train.jsonl"):
        jsonl(tmp_path / name, [{"text": name}])
    assert len(load_source(DatasetSource(str(tmp_path)), 0)) == 3 and not unread(path=str(tmp_path))
    (tmp_path / "train").mkdir()
    jsonl(tmp_path / "train" / "c.jsonl", [{"text": "c"}])  # `datasets` then reads by the folders' names
    assert list(load_source(DatasetSource(str(tmp_path)), 0)["text"]) == ["c"]
    assert "a.jsonl, b.jsonl, my-train.jsonl" in unread(path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        pytest.param(name, end, marks=[pytest.mark.long] * (name != "test" and end != ".jsonl"))
        for name in ("test", "val", "dev-1", "my_eval")
        for end in (".jsonl", ".json", ".csv", ".txt.gz", ".parquet")
    ],
)
def test_files_of_another_split_are_no_training_rows(tmp_path, end, name):
    for file in ("part-0", "part-1", "latest"):
        write_rows(tmp_path / f"{file}{end}", [{"text": file}])
    source = DatasetSource(str(tmp_path))
    for read in (lambda: list(load_source(source, 0)["text"]), lambda: list(text_source(source, 0).texts())):
        (tmp_path / f"{name}{end}").unlink(missing_ok=True)
        assert sorted(read()) == ["latest", "part-0", "part-1"]
        write_rows(tmp_path / f"{name}{end}", [{"text": name}])
        with pytest.raises(InputError, match="cannot be read as split 'train'"):
            read()


@pytest.mark.parametrize("name", ["Test.parquet", "testset.jsonl", "held-out.csv", "DEV/a.jsonl.gz", "my_evals.txt"])
def test_files_held_out_by_a_name_that_datasets_does_not_know_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_rows(tmp_path / name, [{"text": "x"}])
    end = name.partition(".")[2]
    for other in ("part", "latest", "contest", "devices", "values"):
        write_rows(tmp_path / f"{other}.{end}", [{"text": other}])

    def problems(**keys):
        given = [json.dumps({"path": str(tmp_path), **keys})]
        return [text for _, text in places.sources(collect(Options({"datasets": given}), keys_of(DataArguments))[0])]

    (problem,) = problems()
    assert problem.startswith(f"{tmp_path}: {name}: by its name it is held out") and [problem] == problems(split="train[:9]")
    assert not problems(split="test") and not problems(data_files=f"part.{end}")
    write_rows(tmp_path / f"train.{end}", [{"text": "train"}])  # names decide: a warning says that the others are not read
    assert not problems() and name in unread(path=str(tmp_path))


def test_a_file_named_after_two_splits_is_named(tmp_path):
    for name in ("train", "test", "train-test"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert set(load_source(DatasetSource(str(tmp_path)), 0)["text"]) == {"train", "train-test"}
    assert "train-test.jsonl: its name is of several splits, each of which reads it: train, test;" in unread(
        path=str(tmp_path)
    )
    (tmp_path / "train-test.jsonl").unlink()
    assert not unread(path=str(tmp_path))


@pytest.mark.parametrize("end", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"])
def test_a_compressed_file_is_read_as_the_file_is_alone_and_in_a_folder(tmp_path, end):
    rows = [{"prompt": f"ask {i}", "completion": str(i), "text": "NA"} for i in range(3)]
    plain, packed = tmp_path / f"plain{end}", tmp_path / "folder" / f"a{end}.gz"
    write_rows(plain, rows)
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = list(load_source(DatasetSource(str(plain)), 0))
    for path in (packed, packed.parent):
        assert list(load_source(DatasetSource(str(path)), 0)) == expected
    packed.write_bytes(packed.read_bytes()[:-9])
    assert "is not a complete gzip file" in error_of(str(packed), shapes=("text",))


def write_rows(path, rows):
    """Rows as a file of the kind that its name says."""
    opener = gzip.open if path.suffix == ".gz" else open
    end = Path(path.name.removesuffix(".gz")).suffix
    if end == ".parquet":
        return Dataset.from_list(rows).to_parquet(path)
    with opener(path, "wt", newline="") as file:
        if end in (".csv", ".tsv"):
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if end == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        elif end == ".json":
            json.dump(rows, file)
        else:
            file.writelines((row["text"] if end == ".txt" else json.dumps(row)) + "\n" for row in rows)


def test_a_folder_of_several_kinds_of_files_is_refused_instead_of_read_in_part(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "b.csv").write_text("text\nhello\n")
    assert "holds files of several kinds (.csv, .jsonl)" in error_of(str(tmp_path))


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["007", "012"], ["007", "012"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["\u0663", "4"], ["\u0663", "4"]),
        (["0", "-12"], [0, -12]),
        (["1e3", ".5", "nan"], [1000.0, 0.5, "nan"]),
    ],
)
def test_cells_are_numbers_only_as_numbers_are_written(tmp_path, cells, read):
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(f"x,{cell}\n" for cell in cells))
    found = load_source(DatasetSource(str(tmp_path / "a.csv")), 0)["id"]
    assert [value if value == value else "nan" for value in found] == read


def test_a_key_that_stands_twice_in_a_json_list_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b", "text": "c"}]')
    assert "row 2: is not valid JSON (the key 'text' stands twice" in error_of(str(tmp_path / "a.json"))
