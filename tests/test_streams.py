"""Pretraining reads every kind of source row by row, in little memory: the texts that it has as a whole, in their order; a
row that cannot be used is named with its file.
"""

import csv
import json
import zipfile

import pytest
from datasets import Dataset
from forked import run_python
from test_tokens import tokenizer  # noqa: F401
from token_toys import holds, jsonl, shards_of, texts

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data import files as reading
from llmrecipes.data import load_rows, load_source
from llmrecipes.data.files import ReadAnew, column_types, json_kind, listed_rows
from llmrecipes.data.streams import text_source
from llmrecipes.tokens import building

TEXTS = [f'Ann {i} has "{i % 7}" hats,\nred; and ünï{"x" * (i % 9)}\tones' for i in range(90)]
ROWS = [{"id": i, "text": text, "body": f"body {i}", "is_new": i % 2 == 0} for i, text in enumerate(TEXTS)]
READERS = """
def more(rows):
    for row in rows:
        yield {"text": row["text"] + "!", "body": row["body"]}
        if row["id"] % 3 == 0:
            yield {"text": row["text"] + "?", "body": row["body"]}

def listed(rows):
    assert len(rows) == len(list(rows)) and rows[1]["id"] == rows[0]["id"] + 1
    return [{"text": f"{i} of {len(rows)}: {row['text']}"} for i, row in enumerate(rows)]

def drawn(name, split):
    for i in range(90):
        yield {"id": i, "text": f"{name} {split} {i}", "body": "b" * (i + 1), "raw": b"\\xff"}

def table(name, split):
    import datasets
    return datasets.Dataset.from_list([{key: row[key] for key in ("id", "text", "body")} for row in drawn(name, split)])

def none(rows):
    yield from ()

def bad(name, split):
    for row in drawn(name, split):
        yield row if row["id"] != 7 else {"id": 7}

def upset(rows):
    for number, row in enumerate(rows, start=1):
        if number == 8:
            from llmrecipes.config import InputError
            raise InputError(f"row {number}: has no title")
        yield row
"""


@pytest.fixture(autouse=True)
def readers(tmp_path, monkeypatch):
    (tmp_path / "stream_readers.py").write_text(READERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))


def write_table(path, rows=ROWS, **form):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding=form.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **form)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def sources(folder, monkeypatch) -> dict[str, dict]:
    """A source of each kind, most of them of ROWS."""
    write_table(folder / "a.csv", quoting=csv.QUOTE_ALL, lineterminator="\n", encoding="utf-8-sig")
    write_table(folder / "semicolons.csv", delimiter=";")
    write_table(folder / "a.tsv", delimiter="\t")
    write_table(folder / "splits" / "train.csv", ROWS[:60])
    write_table(folder / "splits" / "test.csv", ROWS[60:])
    for i in range(3):
        write_table(folder / "several" / f"part-{i}.csv", ROWS[30 * i : 30 * i + 30])
    for name, content in {"list.json": ROWS, "object.json": {"version": 1, "data": ROWS}}.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False))
    (folder / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    jsonl(folder / "text.jsonl", TEXTS)
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    Dataset.from_list(ROWS).to_parquet(folder / "a.parquet")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.jsonl", "a.jsonl")
    monkeypatch.setattr("llmrecipes.data.archive.fetch_archive", lambda path, sha256: folder / "a.zip")
    names = ["a.csv", "semicolons.csv", "a.tsv", "splits", "several", "list.json", "object.json", "lines.json", "a.jsonl"]
    found = {name: {"path": str(folder / name)} for name in [*names, "a.parquet"]}
    found["other split"] = {"path": str(folder / "splits"), "split": "test"}
    found["both splits"] = {"path": str(folder / "splits"), "split": "test+train"}
    found["some files"] = {"path": str(folder / "several"), "data_files": "part-[12].csv"}
    found |= {name: {"path": f"stream_readers:{name}", "name": "n"} for name in ("drawn", "table")}
    return found | {"archive": {"path": "pypi:a==1", "data_files": "a.jsonl", "sha256": "0" * 64}}


def read(path, **keys):
    return list(text_source(DatasetSource(str(path), **keys), 3).texts())


FEW = [{}, {"reader": "stream_readers:more", "columns": {"body": "text"}, "max_rows": 17}]
KEYS = [
    *FEW,
    {"columns": {"body": "text"}},
    {"max_rows": 17},
    {"split": "train[20%:70%]"},
    {"split": "train[50%:]+train[:9]"},
]
KEYS += [{"columns": ["text"], "max_rows": 17, "split": "train[20%:70%]"}, {"reader": "stream_readers:more"}]
KEYS += [{"reader": "stream_readers:more", "split": split} for split in ("train[20%:70%]", "train[50%:]+train[:9]")]
KEYS += [{"reader": "stream_readers:listed"}, {"reader": "stream_readers:listed", "max_rows": 17}]


def test_texts_read_one_by_one_are_those_read_as_a_whole_in_their_order(tmp_path, monkeypatch):
    compared = 0
    for name, source in sources(tmp_path, monkeypatch).items():
        for keys in FEW if "split" in name or name == "some files" else KEYS:
            if "split" in keys and ":" in source["path"]:  # not those of ROWS
                continue
            asked = {**source, **keys}
            wanted, found = load_rows(DatasetSource(**asked), 3, ("text",))["text"][:], read(**asked)
            if name in ("a.jsonl", "a.parquet") and "reader" not in keys:  # drawn rows stay in the file's order
                wanted, found = sorted(wanted), sorted(found)
            assert found == wanted, asked
            compared += 1
    assert compared > 130 and read(tmp_path / "a.csv") == TEXTS


MEASURED = """
import gc, json, sys
sys.path.insert(0, {folder!r})
from llmrecipes.config import DatasetSource
from llmrecipes.data.streams import text_source
held = lambda: next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))
text_source(DatasetSource({small!r}), 0)
for source in json.loads({sources!r}):
    gc.collect()
    before, most, count = held(), 0, 0
    for text in text_source(DatasetSource(**source), 0).texts():
        count += 1
        if count % 100 == 1:
            most = max(most, held() - before)
    print("grew", most, count)
"""


def test_no_source_is_in_memory_as_a_whole(tmp_path):
    rows = [{"id": i, "text": f"{i} " + "words" * 4000} for i in range(3000)]  # 60 MB
    path = write_table(tmp_path / "large.csv", rows)
    (tmp_path / "large.json").write_text(json.dumps(rows))
    (tmp_path / "large_rows.py").write_text(
        "def large(name, split):\n    for i in range(3000):\n        yield {'id': i, 'text': str(i) + 'words' * 4000}\n"
        "def same(rows):\n    yield from rows\n"
    )
    given = [{"path": path}, {"path": path, "max_rows": 1000}, {"path": str(tmp_path / "large.json")}]
    given += [{"path": str(tmp_path / "large.json"), "reader": "large_rows:same", "columns": ["text"]}]
    given += [{"path": "large_rows:large", "columns": ["text"]}, {"path": "large_rows:large", "max_rows": 1000}]
    small = jsonl(tmp_path / "small.jsonl", ["Ann"])
    ended = run_python("-c", MEASURED.format(folder=str(tmp_path), small=small, sources=json.dumps(given)))
    grown = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("grew")]
    assert [int(count) for _, count in grown] == [3000, 1000, 3000, 3000, 3000, 1000], ended.stderr[-2000:]
    print(grown)
    assert max(int(mib) for mib, _ in grown) < 30, grown


# --- rows that cannot be used ----------------------------------------------------------------------------------------


def bad_sources(folder) -> dict[str, tuple[dict, str]]:
    """Kind of source -> (the source, what names its row)"""
    write_table(folder / "one.csv", [row | {"text": ""} if row["id"] == 6 else row for row in ROWS])
    for i in range(3):
        write_table(folder / "several" / f"part-{i}.csv", ROWS[30 * i : 30 * i + 30])
    with (folder / "several" / "part-1.csv").open("ab") as file:
        file.write(b"99,caf\xe9,b,True\n")
    (folder / "a.json").write_text(json.dumps([*ROWS[:6], {"title": "no text"}, *ROWS[7:]]))
    jsonl(folder / "a.jsonl", TEXTS)
    return {
        "table": ({"path": str(folder / "one.csv")}, r"one\.csv, row 7: text is empty"),
        "tables": ({"path": str(folder / "several")}, r"part-1\.csv, row 31: is not UTF-8 \(byte 0xe9 after '99caf'\)"),
        "list": ({"path": str(folder / "a.json")}, r"a\.json, row 7: columns are title; expected text"),
        "columns": ({"path": str(folder / "a.json"), "columns": ["text"]}, r"a\.json, row 7: has no column `text`; it has "),
        "generator": (
            {"path": "stream_readers:bad", "max_rows": 90, "columns": ["text"]},
            r"stream_readers:bad, row 8: has no column `text`; it has id",
        ),
        "reader": ({"path": "stream_readers:bad", "reader": "stream_readers:upset"}, r":bad, row 8: has no title"),
    }


def test_a_row_that_cannot_be_used_is_named_or_left_out_whatever_the_source(tmp_path):
    for kind, (source, message) in bad_sources(tmp_path).items():
        with pytest.raises(InputError, match=message):
            read(**source)
        if kind != "reader":
            rows = 90 if kind == "tables" else 89
            assert len(read(**source, drop_bad_rows=True)) == rows, kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,id\na,1\nb,2,3\n", "a.csv, row 2: has more cells than the header; quote what holds a ','"),
        ('text,id\na,1\n"b,2\n', "a.csv, row 2: cannot be read as a table: unexpected end of data"),
        ('text,id\na,1\n"b" c,2\n', "a.csv, row 2: cannot be read as a table: ',' expected after '\"'"),
        ("text,id\na,1\nb\n\n,2\n", "a.csv, row 3: text is empty"),
        ("id,text\n1,a\n2\n", "a.csv, row 2: text is null"),
        ("text,text\na,1\n", "a.csv: has the column 'text' twice"),
        ("text\n", "a.csv: is empty; it has no rows|nothing is left to learn from"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_alike_for_a_file_and_for_a_folder(tokenizer, tmp_path, content, message):  # noqa: F811
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(content)
    (tmp_path / "in" / "b.csv").write_text("text,id\nc,1\n" if content != "text\n" else content)
    for path in ("in/a.csv", "in"):
        for load in (lambda at: shards_of(at, tokenizer, tmp_path), lambda at: load_rows(DatasetSource(at), 0, ("text",))):
            with pytest.raises(InputError, match=message.replace("|", "|is empty; nothing to read|")):
                load(str(tmp_path / path))


def test_long_cells_and_nuls_are_learned_and_counted(tokenizer, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(building, "LONG", 200_000)
    rows = [{"text": "Ann"}, {"text": "a\0b"}, {"text": "Ann has hats. " * 20_000}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for path in (write_table(tmp_path / "a.csv", rows), str(tmp_path / "a.json")):
        assert shards_of(path, tokenizer, tmp_path).num_documents == 3
        said = capsys.readouterr().out
        assert "1 of 3 rows are texts with NUL characters" in said and "1 of 3 rows are texts of more than 200,000" in said


def test_a_bad_row_keeps_what_is_finished_and_the_next_start_goes_on(tokenizer, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(building, "SHARD_TOKENS", 300)
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 7)
    path = write_table(tmp_path / "a.csv", [{"text": text} for text in [*texts("Ann", 80), "", *texts("Bob", 30)]])
    message = r"a\.csv, row 81: text is empty; fix it, or leave such rows out with `drop_bad_rows: true`"
    with pytest.raises(InputError, match=message):
        shards_of(path, tokenizer, tmp_path)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").rglob("0*.ds")}
    shards = shards_of(path, tokenizer, tmp_path, drop_bad_rows=True)
    assert "going on into" in capsys.readouterr().out and len(made) > 3
    assert made.items() <= {file: file.stat().st_mtime_ns for file in shards.folder.glob("*.ds")}.items()
    assert holds(shards, [*texts("Ann", 80), *texts("Bob", 30)], tokenizer)
    with pytest.raises(InputError, match=message):
        shards_of(path, tokenizer, tmp_path)  # which may leave out nothing


def test_a_row_that_cannot_be_used_ends_the_command_with_one_line(tokenizer, tmp_path):  # noqa: F811
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for source, message in (bad_sources(tmp_path)[kind] for kind in ("tables", "generator")):
        words = ["--datasets", json.dumps([source]), "--tokenizer_name_or_path", str(tmp_path / "tokenizer")]
        ended = run_python("-m", "llmrecipes.tokens", *words, env={"PYTHONPATH": str(tmp_path)})
        told = [line for line in ended.stderr.splitlines() if line.startswith("error")]
        assert ended.returncode == 2 and len(told) == 1 and "Traceback" not in ended.stderr, ended.stderr
        assert message.split(":")[0].replace("\\", "").split(",")[-1] in told[0]


# --- the readers themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_json_list_is_read_in_parts_as_json_reads_it(tmp_path, monkeypatch, size):
    monkeypatch.setattr(reading, "CHARACTERS", size)
    file = tmp_path / "a.json"
    rows = [{"text": 'é "]},[ \\ \n\0😀', "n": [-1.5e-7, 123456789, True, None, {}, []]}, {}, {"a": {"b": [{"c": "]"}]}}]
    for content in (json.dumps(rows), json.dumps(rows, indent=3, ensure_ascii=False), "[]", " [ ] \n", "\ufeff[{}]"):
        file.write_text(content)
        assert json_kind(file) == "list"
        assert [row for _, row in listed_rows(file)] == json.loads(content.removeprefix("\ufeff"))
    broken = {
        '[{"a": 1},]': 2,
        '[{"a": 1} {"b": 2}]': 1,
        '[{"a": 1}, {"b": ': 2,
        '[{"a": 1}, {"b": 2}': 2,
        "[": 1,
        '[{"a" 1}]': 1,
        '[{}, {"a": tru}]': 2,
        '[{}, {"a": "' + "x" * 99: 2,
        "[{}, {'a': 1}]" + " " * 99: 2,
    }
    for content, number in broken.items():
        file.write_text(content)
        with pytest.raises(InputError, match=rf"a\.json, row {number}: is not valid JSON"):
            list(listed_rows(file))
    file.write_text("[{}] {}")
    with pytest.raises(InputError, match="more text after the list of 1 rows"):
        list(listed_rows(file))
    file.write_bytes(b'[{}, 3, {"a": "\\ud800"}, {"a": "\xff"}, {"a": "ok"}]')
    found = [str(row) for _, row in listed_rows(file)]
    assert "row 2: expected an object {...}, found 3" in found[1] and "row 3: holds half of a character" in found[2]
    assert "row 4: is not UTF-8 (byte 0xff" in found[3] and found[4] == "{'a': 'ok'}"


def test_a_broken_list_is_not_read_to_its_end_to_find_that_out(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHARACTERS", 100)
    (tmp_path / "a.json").write_text('[{"a": oops}, ' + '{"a": "b"}, ' * 10_000 + "{}]")
    asked, real = [], reading._next_value
    monkeypatch.setattr(reading, "_next_value", lambda text, at: asked.append(len(text)) or real(text, at))
    with pytest.raises(InputError, match="row 1: is not valid JSON"):
        list(listed_rows(tmp_path / "a.json"))
    assert max(asked) <= 200


def test_cells_of_all_files_decide_what_a_column_is(tmp_path):
    for i, level in enumerate(["1", "2.5"]):
        write_table(tmp_path / "in" / f"{i}.csv", [{"prompt": "42", "level": level, "is_new": "TRUE", "of": i or "a"}])
    types = column_types(sorted((tmp_path / "in").iterdir()))
    assert set(types) == {"level", "is_new"} and types["level"] is float
    found = list(load_source(DatasetSource(str(tmp_path / "in")), 0))
    assert found == [{"prompt": "42", "level": level, "is_new": True, "of": of} for level, of in ((1, "a"), (2.5, "1"))]


def test_rows_for_a_reader_are_read_again_and_held_only_if_asked_by_number():
    opened = []
    rows = ReadAnew(lambda: opened.append(1) or iter([{"a": i} for i in range(5)]))
    assert list(rows) == list(rows) and len(rows) == len(rows) == 5 and len(opened) == 3
    assert rows[1] == rows[-4] == {"a": 1} and len(rows[1:3]) == 2 and len(opened) == 4
