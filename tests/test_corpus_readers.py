"""Sources of a corpus: every kind of file gives the same documents; what cannot be read is one line with file and row."""

import bz2
import gzip
import json
import tracemalloc
import zipfile

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from corpora import PLAIN, kept, run_build, texts_of, write_lines

from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import CorpusArguments, to_source
from llmrecipes.corpus.documents import read_documents
from llmrecipes.corpus.parts import Part, plan_parts
from llmrecipes.corpus.readers import read_file
from llmrecipes.data.hub_streams import within_reach
from llmrecipes.manifest import inputs_of, run_fingerprint

TEXTS = ["The first text, with ünïcode.", "The second text.", "Third \u2028 text."]


def jsonl(texts=TEXTS):
    return "".join(json.dumps({"text": text, "n": i}, ensure_ascii=False) + "\n" for i, text in enumerate(texts)).encode()


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(jsonl()))
    (tmp_path / "c.ndjson.bz2").write_bytes(bz2.compress(jsonl()))
    table = pyarrow.Table.from_pylist([{"text": text, "n": 1} for text in TEXTS])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "e")
    for name in ("a.jsonl", "b.json.gz", "c.ndjson.bz2", "d.parquet", "e"):
        assert texts_of(tmp_path / name) == TEXTS, name


def test_zstandard_of_several_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = b"".join(zstandard.compress(jsonl([text])) for text in TEXTS)
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert texts_of(tmp_path / "a.jsonl.zst") == TEXTS
    whole = zstandard.compress(jsonl(TEXTS * 1000))
    for name, content in (("cut", whole[: len(whole) // 2]), ("flipped", whole[:-40] + bytes(40))):
        (tmp_path / f"{name}.jsonl.zst").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.jsonl\.zst: is truncated or damaged"):
            texts_of(tmp_path / f"{name}.jsonl.zst", drop_bad_rows=True)


def test_text_is_a_document_a_line_or_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree")
    assert texts_of(tmp_path / "a.txt") == ["one", "two", "three"]
    assert texts_of(tmp_path / "a.txt", whole_files=True) == ["one\ntwo\n\nthree"]


BAD = [
    (b'{"text": "fine"}\n{"text": "\xff\xfe"}\n', r"row 2: is not UTF-8 at byte 11 of the line"),
    (b'{"text": "fine"}\n{"text": "cut\n', r"row 2: is not valid JSON"),
    (
        b'{"text": "fine"}\n{"text": "a", "text": "b"}\n',
        r"row 2: is not valid JSON \(the key 'text' stands twice in one object",
    ),
    (b'{"text": "fine"}\n["a list"]\n', r"row 2: is no JSON object"),
    (b'{"text": "fine"}\n\n{"txt": "other column", "n": 1}\n', r"row 3: has no `text`; its columns are txt, n"),
    (b'{"text": "fine"}\n{"text": 7}\n', r"row 2: `text` is not text but int"),
    (b'{"text": "fine"}\n{"text": "a\\u0000b"}\n', r"row 2: holds a NUL"),
    (b'{"text": "fine"}\n{"text": "\\ud800"}\n', r"row 2: holds half of a character"),
    (b'{"text": "fine"}\n{"text": "' + b"x" * 20_000 + b'"}\n', r"row 2: is longer than max_document_bytes \(10,000\)"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_bad_row_is_named_or_counted(tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content + b'{"text": "the last"}\n')
    with pytest.raises(InputError, match=message + ".*drop_bad_rows"):
        texts_of(file)
    found = run_build(tmp_path / "out", [{"path": str(file), "drop_bad_rows": True}], max_document_bytes=10_000, **PLAIN)
    assert found["total"]["kept"][0] == 2 and sum(n for n, _ in found["total"]["dropped"]["read"].values()) == 1


def test_a_column_missing_in_one_row_far_down(tmp_path):
    rows = [{"text": "fine"}] * 2999 + [{"body": "no text here"}] + [{"text": "fine"}] * 5
    file = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=r"a\.jsonl, row 3000: has no `text`; its columns are body"):
        texts_of(file)


def test_a_line_of_fifty_megabytes_is_never_in_memory(tmp_path):
    file = tmp_path / "a.jsonl"
    with file.open("wb") as out:
        out.write(b'{"text": "before"}\n{"text": "')
        for _ in range(50):
            out.write(b"x" * 1_000_000)
        out.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    rows = list(read_file(str(file), False, 1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [number for number, _ in rows] == [1, 2, 3] and rows[2][1] == {"text": "after"}
    assert "longer than" in rows[1][1] and peak < 8_000_000


def test_files_that_are_cut_off_are_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS * 500))[:-20])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "c.arrow").write_bytes(b"nothing")
    for name in ("a.jsonl.gz", "b.parquet", "c.arrow"):
        with pytest.raises(InputError, match=name):
            texts_of(tmp_path / name)
    with pytest.raises(InputError, match=r"d\.xls: unknown kind of file"):
        (tmp_path / "d.xls").write_text("x")
        texts_of(tmp_path / "d.xls")
    with pytest.raises(InputError, match="has no file that can be read"):
        texts_of(tmp_path / "none" / "*.jsonl")
    (tmp_path / "e.jsonl.bz2").write_bytes(jsonl())
    with pytest.raises(InputError, match=r"e\.jsonl\.bz2: cannot be read \(Invalid data stream\)"):
        texts_of(tmp_path / "e.jsonl.bz2")


@pytest.mark.parametrize(
    ("name", "begin", "message"),
    [
        ("a.txt", b"%PDF-1.4\n1 0 obj\nendobj\n", "a PDF"),
        ("a.txt", b"{\\rtf1 a text}\n", "RTF"),
        ("a.jsonl", b"PK\x03\x04rest\n", "a zip archive"),
        ("a.html", b"\x1f\x8brest", "packed by gzip"),
        ("a.txt", "a text\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_is_one_bad_row(tmp_path, name, begin, message):
    (tmp_path / name).write_bytes(begin + b"more lines\n" * 9)
    with pytest.raises(InputError, match=f"{name}, row 1: is {message}.*as the file's first bytes say"):
        texts_of(tmp_path / name)
    assert texts_of(tmp_path / name, drop_bad_rows=True) == [""], "of the bad row; none of its lines"


def test_json_over_several_lines_and_null_are_named_as_that(tmp_path):
    for content, message in (
        (json.dumps({"messages": [{"text": "a"}]}, indent=1), r"row 1: begins a JSON value that goes over several lines"),
        ('{"text": null}', r"row 1: `text` is null"),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            texts_of(tmp_path / "a.json")


def test_files_of_other_names_are_read_as_what_is_said(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "src" / "b.tex.gz").write_bytes(gzip.compress(b"\\section{A}\n"))
    assert texts_of(tmp_path / "src", file_type="text", whole_files=True) == ["x = 1\ny = 2\n", "\\section{A}\n"]
    assert texts_of(tmp_path / "src", file_type="text", whole_files=True, data_files="*.py") == ["x = 1\ny = 2\n"]
    (tmp_path / "wiki_00").write_bytes(jsonl())
    assert texts_of(tmp_path / "wiki_00", file_type="jsonl") == TEXTS
    with pytest.raises(InputError, match=r"wiki_00: unknown kind of file.*`file_type:` jsonl, text"):
        texts_of(tmp_path / "wiki_00")
    with pytest.raises(InputError, match=r"`file_type` is 'txt'.*text"):
        to_source({"path": str(tmp_path), "file_type": "txt"}, "s")
    (tmp_path / "code.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"code\.zip: is an archive of files; unpack it"):
        texts_of(tmp_path / "code.zip")


def test_names_of_files_below_a_folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl())
    for name in ("", str(tmp_path / "in" / "*.jsonl")):
        with pytest.raises(InputError, match="data_files holds .*; write names or patterns below the folder"):
            texts_of(tmp_path / "in", data_files=[name] if not name else name)
    with pytest.raises(InputError, match="none.jsonl: does not exist"):
        texts_of(tmp_path / "none.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_bytes(jsonl())
    given = {"sources": [{"path": "in", "data_files": "**/*.jsonl"}]}
    assert [*inputs_of(given)] == ["in"], "not what the pattern finds in the current folder"
    before = run_fingerprint("corpus", given, None)
    (tmp_path / "other.jsonl").write_text("changed")
    assert run_fingerprint("corpus", given, None) == before
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "changed"}')
    assert run_fingerprint("corpus", given, None) != before


def test_links_that_are_not_followed_are_named(tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "in" / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "in" / "a" / "loop").symlink_to("..")
    (tmp_path / "in" / "gone.jsonl").symlink_to("nowhere")
    assert texts_of(tmp_path / "in") == TEXTS * 2, "links to files are"
    assert "or to nothing, are not followed (a/loop, gone.jsonl)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_row_of_a_table_that_is_not_utf8_is_named_or_left_out_alone(tmp_path, kind):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")]
    )
    table = pyarrow.table({"text": pyarrow.concat_arrays([pyarrow.array(["one", "two"]), broken, pyarrow.array(["four"])])})
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=rf"a\.{kind}, row 3: is not UTF-8 at byte 2"):
        texts_of(file)
    found = run_build(tmp_path / "out", [{"path": str(file), "drop_bad_rows": True}], **PLAIN)
    assert found["total"]["kept"][0] == 3 and [name[-2:] for name in kept(tmp_path / "out")] == ["#1", "#2", "#4"]


def test_a_document_with_an_address_is_known_by_it_from_any_kind_of_file(tmp_path):
    rows = [{"text": "one", "url": "http://x.org/1"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for number, file in enumerate((write_lines(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet")):
        run_build(tmp_path / str(number), [str(file)], **PLAIN)
        assert kept(tmp_path / str(number)) == ["http://x.org/1"]


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path, capsys):
    """A README.md beside data is their card, among texts it is one of them."""
    for name in ("a.jsonl", "b.csv", "README.md", "texts/README.md", "texts/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(["one text"]))
    assert len(texts_of(tmp_path / "texts", whole_files=True)) == 2 and not capsys.readouterr().out
    assert len(texts_of(tmp_path / "texts")) == 2
    assert "texts: each line of its text files is a document; with `whole_files: true`" in capsys.readouterr().out
    assert len(texts_of(tmp_path)) == 2
    assert "3 of 5 files are not read (README.md, b.csv, texts/README.md); choose" in capsys.readouterr().out


def test_files_of_a_folder_that_seem_held_out_are_named(tmp_path, capsys):
    for name in ("a.jsonl", "latest.jsonl", "Test.jsonl", "dev/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(["one text"]))
    assert len(texts_of(tmp_path)) == 4
    assert "are held out are read too (Test.jsonl, dev/b.jsonl); choose" in capsys.readouterr().out
    assert len(texts_of(tmp_path, data_files="*test.jsonl")) == 1 and not capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_one_json_list_is_read_row_by_row(tmp_path, name):
    write = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(write(b'\xef\xbb\xbf [\n{"text": "one"},\n {"text": "two"}]'))
    assert texts_of(tmp_path / name) == ["one", "two"]
    (tmp_path / name).write_bytes(write(b'[{"text": "one"}, {"text": "\\ud800"}, 3]'))
    with pytest.raises(InputError, match=r"a\.json.*, row 2: holds half of a character"):
        texts_of(tmp_path / name)
    (tmp_path / name).write_bytes(write(b'[{"text": "one"}, '))
    with pytest.raises(InputError, match=r"a\.json.*: is not valid JSON"):
        texts_of(tmp_path / name)


def test_lines_that_end_in_cr_alone_are_not_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\r".join([b"a line"] * 20))
    with pytest.raises(InputError, match=r"row 1: ends its lines by CR alone"):
        texts_of(tmp_path / "a.txt")


def test_a_name_of_ours_in_a_users_folder_is_said_and_read_when_asked_for(tmp_path, capsys):
    for name in ("a.jsonl", "report.json"):
        (tmp_path / name).write_bytes(jsonl(["one text"]))
    assert len(texts_of(tmp_path)) == 1 and "1 of 2 files are not read (report.json)" in capsys.readouterr().out
    assert len(texts_of(tmp_path, data_files="*.json*")) == 2


def test_whole_files_is_for_texts(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    with pytest.raises(InputError, match=r"a\.jsonl: `whole_files` has no effect"):
        texts_of(tmp_path / "a.jsonl", whole_files=True)


@pytest.mark.parametrize("keys", [{"split": "train[:10%]"}, {"sha256": "0" * 64}])
def test_keys_without_effect_on_local_files_are_refused(tmp_path, keys):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    with pytest.raises(InputError, match=rf"sources\[0\]: `{next(iter(keys))}` is "):
        texts_of(tmp_path / "a.jsonl", **keys)


def test_empty_documents_are_dropped_by_any_steps(tmp_path):
    rows = ["a text", "", " \n"]
    found = run_build(tmp_path / "out", [str(write_lines(tmp_path / "a.jsonl", rows))], **PLAIN, exact_duplicates=False)
    assert found["total"]["kept"][0] == 1 and found["total"]["dropped"] == {"read": {"is empty": [2, 0]}}


def test_a_source_out_of_reach_is_tried_again_then_named(monkeypatch):
    waits, tries = [], []
    monkeypatch.setattr("time.sleep", waits.append)

    def read():
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("no route to host")
        return "rows"

    assert within_reach("org/set", 3, read) == "rows" and waits == [1, 2]
    tries[:] = [1] * -10
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match=r"org/set: out of reach after 2 tries \(no route.*finished are kept"):
        within_reach("org/set", 1, lambda: (_ for _ in ()).throw(ConnectionError("no route to host")))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not the network's
        within_reach("org/set", 1, lambda: 1 / 0)


def test_a_reader_of_the_users_and_columns_of_another_name(tmp_path, monkeypatch):
    (tmp_path / "shouts.py").write_text("def shout(rows):\n    return ({'text': row['body'].upper()} for row in rows)\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = write_lines(tmp_path / "a.jsonl", [{"body": "quiet", "key": "k1"}])
    assert texts_of(file, reader="shouts:shout") == ["QUIET"]
    run_build(tmp_path / "out", [{"path": str(file), "text_column": "body", "id_column": "key"}], **PLAIN)
    assert kept(tmp_path / "out") == ["k1"]


COUNTING = """
drawn = 0

def rows(name, split):
    global drawn
    for i in range(1000):
        drawn += 1
        yield {"text": f"{name} text number {i}", "key": f"k{i}"} if (name, i) != ("broken", 900) else {"key": "none"}

def pages(given):
    for row in given:
        yield {"text": row["text"].upper(), "key": row["key"]}
"""


def test_a_function_gives_its_documents_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "counting_rows.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    import counting_rows

    for name, reader, text in (("one", None, "one text number 0"), ("two", "counting_rows:pages", "TWO TEXT NUMBER 0")):
        source = to_source({"path": "counting_rows:rows", "name": name, "reader": reader}, "sources[0]")
        (part,) = plan_parts(CorpusArguments(sources=[source]))
        counting_rows.drawn = 0
        for number, document in enumerate(read_documents(source, part, 10_000), start=1):
            assert counting_rows.drawn <= number + 1
            assert number > 1 or document.text == text
        assert number == 1000
    with pytest.raises(InputError, match=r"counting_rows:rows/broken, row 901: has no `text`; its columns are key"):
        texts_of("counting_rows:rows", name="broken")


def test_a_function_gives_the_shards_of_a_file_with_its_rows(tmp_path, monkeypatch):
    (tmp_path / "counting_rows.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    import counting_rows

    file = write_lines(tmp_path / "a.jsonl", list(counting_rows.rows("x", "train")))
    for path, name in ((str(file), None), ("counting_rows:rows", "x")):
        source = {"path": path, "name": name, "label": "a", "id_column": "key"}
        run_build(tmp_path / path[-4:], [source], **PLAIN)
    shards = [(tmp_path / name / "data" / "a" / "000000.parquet").read_bytes() for name in ("sonl", "rows")]
    assert shards[0] == shards[1] and len(kept(tmp_path / "rows")) == 1000


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_member_of_an_archive_is_not_in_memory_as_a_whole(tmp_path, monkeypatch, ending):
    rows = [{"text": f"{i} " + "word " * 1000} for i in range(4000)]  # 20 MB
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=500, compression="zstd")
    else:
        head, line = ("", json.dumps) if ending == "jsonl" else ("text\n", lambda row: row["text"])
        file.write_text(head + "".join(line(row) + "\n" for row in rows))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, file.name)
    monkeypatch.setattr("llmrecipes.data.archive.fetch_archive", lambda path, sha256: tmp_path / "a.zip")
    source = to_source({"path": "pypi:a==1", "sha256": "0" * 64, "data_files": file.name}, "sources[0]")
    part, found = Part(0, 0), []
    tracemalloc.start()
    for document in read_documents(source, part, 10_000):
        found.append(hash(document.text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [hash(row["text"]) for row in rows] and peak < 8 << 20


class Hub:
    """Three shards of a data set, as the Hub would give them."""

    def __init__(self, streaming, fail=0):
        self.streaming, self.fail, self.revisions = streaming, fail, []

    def load_dataset(self, path, name, *, data_files, split, revision, streaming):
        self.revisions.append(revision)
        if self.fail:
            self.fail -= 1
            raise ConnectionError("down")
        rows = [{"text": f"text number {i}"} for i in range(9)]
        data = datasets.Dataset.from_list(rows)
        return data.to_iterable_dataset(num_shards=3) if streaming else data


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_sets_streamed_or_not_are_read_in_shards_at_one_commit(tmp_path, monkeypatch, streaming):
    hub = Hub(streaming, fail=1)
    monkeypatch.setattr("llmrecipes.corpus.hub.datasets.load_dataset", hub.load_dataset)
    monkeypatch.setattr("llmrecipes.data.hub_streams.commit_of", lambda source: "c0ffee")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    found = run_build(tmp_path / "out", [{"path": "org/set", "streaming": streaming}], shard_bytes=60, **PLAIN)
    assert found["total"]["kept"][0] == 9 and set(hub.revisions) == {"c0ffee"}
    assert len(list(tmp_path.glob("out/data/set/*"))) >= 3 and found["sources"]["set"]["revision"] == "c0ffee"
