"""Archives and their members that are damaged, encrypted, too large or none at all are one line."""

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
import zipfile

import pyarrow.parquet
import pytest
from package_index import ROWS, add, add_wheel, lines

from llmrecipes.config import InputError
from llmrecipes.data.archive import load_archive, open_archive
from llmrecipes.data.members import read_member

pytest_plugins = ["package_index"]  # fixtures: index


def zipped(content: bytes, name="toy/data.jsonl", method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes, mode="w:gz", name="toy/data.jsonl", size=None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The zip with the bit set that says so, in both of its headers."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = archive.index(signature) + offset
        archive = archive[:at] + bytes([archive[at] | 1]) + archive[at + 1 :]
    return archive


def wrong_checksum(archive: bytes) -> bytes:
    at = archive.index(b"PK\x01\x02") + 16
    return archive[:at] + bytes(4) + archive[at + 4 :]


def noise(archive: bytes) -> bytes:
    """The archive with its middle overwritten."""
    half = len(archive) // 2
    return archive[:half] + b"\xff" * 40 + archive[half + 40 :]


TEXT = lines([{"text": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(2000)])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("toy_data-1.0.zip", encrypted(zipped(TEXT)), "toy/data.jsonl: is encrypted"),
        ("toy_data-1.0.zip", wrong_checksum(zipped(TEXT)), "CRC"),
        ("toy_data-1.0.zip", noise(zipped(TEXT)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", noise(zipped(TEXT, method=zipfile.ZIP_BZIP2)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", noise(zipped(TEXT, method=zipfile.ZIP_LZMA)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", zipped(TEXT)[:-40], "neither|broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT)[:-40], "cut off"),
        ("toy_data-1.0.tar.gz", tarred(TEXT)[:3000], "cut off"),
        ("toy_data-1.0.tar.gz", noise(tarred(TEXT)), "broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT, "w:xz")[:3000], "cut off"),
        ("toy_data-1.0.tar.gz", noise(tarred(TEXT, "w:bz2")), "broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT, "w")[:9000], "broken|cut off"),
    ],
)
def test_a_broken_or_encrypted_archive_is_one_line(index, name, content, said):
    with pytest.raises(InputError, match=said) as error:
        load_archive(add(index, name, content))
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_what_unpacks_to_too_much_is_refused_before_it_does(index, monkeypatch, make):
    monkeypatch.setattr("llmrecipes.data.archive.MEMBER_BYTES", 1 << 20)
    monkeypatch.setattr("llmrecipes.data.archive.UNPACKED_BYTES", 1 << 21)
    name = "toy_data-1.0.zip" if make is zipped else "toy_data-1.0.tar.gz"
    for size, said in ((2 << 20, "unpacks to more than"), (64 << 20, "unpacks to more than")):
        source = add(index, name, make(b"0" * size))
        tracemalloc.start()
        with pytest.raises(InputError, match=said):
            load_archive(source)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        index.files.clear()
    monkeypatch.setattr("llmrecipes.data.archive.MEMBERS", 0)
    with pytest.raises(InputError, match="more than 0 members"):
        load_archive(add(index, name, make(TEXT)))


def tiny(kind: str) -> bytes:
    buffer, content = io.BytesIO(), lines(ROWS[:1])
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.jsonl", content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo("a.jsonl")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_every_damaged_byte_ends_in_rows_or_in_a_line(kind, tmp_path):
    whole, path, outcomes = tiny(kind), tmp_path / "a", set()
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + b"\0" + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                file, members, open_member = open_archive(path)
                with file:
                    [list(read_member(name, open_member(member), name)) for name, member in members.items()]
                outcomes.add("rows")
            except InputError as error:
                assert "\n" not in str(error)
                outcomes.add("a line")
    assert outcomes == {"rows", "a line"}


def test_a_parquet_file_whose_names_are_not_utf8_is_one_line():
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), buffer, store_schema=False)
    with pytest.raises(InputError, match="a.parquet: not a parquet file"):
        list(read_member("a.parquet", io.BytesIO(buffer.getvalue().replace(b"text", b"\xe5ext")), "a.parquet"))


def test_many_members_together_are_no_more_than_the_limit(index, monkeypatch):
    monkeypatch.setattr("llmrecipes.data.archive.UNPACKED_BYTES", 3 * len(TEXT))
    source = add_wheel(index, {f"toy/{number}.jsonl": TEXT for number in range(9)})
    source.data_files = "toy/*.jsonl"
    with pytest.raises(InputError, match="toy/3.jsonl: unpacks to more"):
        load_archive(source)


def test_a_parquet_file_of_more_rows_than_it_has_bytes_is_refused(monkeypatch):
    monkeypatch.setattr("llmrecipes.data.members.CELLS", 10_000)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": [0] * 100_000}), buffer)
    buffer.seek(0)
    with pytest.raises(InputError, match="100,000 rows of 1 columns are too much"):
        list(read_member("a.parquet", buffer, "a.parquet"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_json_without_end_is_one_line(content):
    with pytest.raises(InputError, match="a.json(, row 1: is|:) not valid JSON"):
        list(read_member("a.json", io.BytesIO(content), "a.json"))


def test_a_file_that_is_no_archive_is_refused(index):
    source = add(index, "toy_data-1.0.tar.gz", gzip.compress(b"not a tar"))
    with pytest.raises(InputError, match="neither a zip nor a tar"):
        load_archive(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"x": 1},\n{"x": ]', "a.json, row 2: is not valid JSON"),
        ("a.json", b"[1, 2]", "a.json, row 1: expected an object"),
        ("a.json", b'{"a": 1,\n"b": }', "a.json, line 2: not valid JSON"),
        ("a.json", b'{"a": {"x": 1, "x": 2}}', "the key 'x' stands twice"),
        ("a.json", b'[{"a": 1}, {"x": 1, "x": 2}]', "row 2: is not valid JSON .the key 'x' stands twice"),
        ("a.json", b'"text"', "expected a list of objects or an object of objects"),
        ("a.csv", b"x,y\n1,2,3\n", "a.csv, line 2: 2 columns"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", b"nothing", "not a parquet file"),
    ],
)
def test_broken_members_say_where(name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_member(name, io.BytesIO(content), name))


@pytest.mark.parametrize("begin", [b"[", b"\xef\xbb\xbf \n["])
def test_of_a_json_list_only_some_is_in_memory(begin):
    rows = [{"text": f"{number} é " + "x" * 1000, "n": [number, None]} for number in range(8000)]
    content = begin + json.dumps(rows, ensure_ascii=False, indent=1).encode()[1:]
    stream = io.BytesIO(content)
    found = read_member("a.json", stream, "a.json")
    assert next(found) == rows[0] and stream.tell() < len(content) / 3
    assert list(found) == rows[1:] and not stream.closed
