"""Files that decide something are replaced whole or not at all; a full disk is one line, whoever meets it."""

import os
import sqlite3
from dataclasses import dataclass

import pytest
from safetensors import SafetensorError

from llmrecipes import durable
from llmrecipes.config import RunArguments
from llmrecipes.durable import cut_back, disk_is_full, read_json, write_json
from llmrecipes.parsing import launch

# As these writers said it on a disk without room.
FULL = [
    OSError(28, "No space left on device"),
    OSError(122, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # tokenizers
    sqlite3.OperationalError("database or disk is full"),
]
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@dataclass
class Arguments:
    output_dir: str = ""


@pytest.mark.parametrize("error", FULL, ids=[type(error).__name__ for error in FULL])
def test_full_disk_is_one_line_and_exit_code_2(error, tmp_path, capsys):
    def main(run, args):
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("while saving") from inner

    with pytest.raises(SystemExit) as caught:
        launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"error: {tmp_path / 'o'}: the disk is full; free some space")


LARGE = [
    OSError(27, "File too large"),
    SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    TORCH,
    RuntimeError("basic_ios::clear: iostream error"),  # torch, at the end of a file
]


@pytest.mark.parametrize("error", LARGE, ids=[f"{type(error).__name__}-{error}"[:30] for error in LARGE])
def test_a_file_beyond_a_limit_on_its_size_is_one_line(error, tmp_path, monkeypatch, capsys):
    def main(run, args):
        raise RuntimeError("while saving") from error

    monkeypatch.setattr(durable.resource, "getrlimit", lambda kind: (9, 9))
    with pytest.raises(SystemExit, match="^2$"):
        launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(
        f"error: {tmp_path / 'o'}: a file is larger than the file system or `ul"
    )
    monkeypatch.undo()
    assert durable.file_is_too_large(error) == ("RuntimeError" not in type(error).__name__), "torch does not say it"


DENIED = [
    (OSError(30, "Read-only file system", "/mnt/x/model"), "/mnt/x/model: Read-only file system"),
    (PermissionError(13, "Permission denied", "data.jsonl"), "data.jsonl: Permission denied"),
    (SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)"), "o: Read-only file system"),
]


@pytest.mark.parametrize(("error", "line"), DENIED, ids=[line for _, line in DENIED])
def test_what_may_not_be_written_is_one_line(error, line, tmp_path, capsys):
    def main(run, args):
        raise RuntimeError("while saving") from error

    with pytest.raises(SystemExit, match="^2$"):
        launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{line}; give this user the right to it, or name another" in said


def test_a_full_disk_of_the_cache_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llmrecipes.durable.free_bytes", lambda folder: 0 if folder == tmp_path / "cache" else 1 << 30)

    def main(run, args):
        raise FULL[0]

    with pytest.raises(SystemExit):
        launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'cache'}: the disk is full; free some space, or set")


def test_torchs_writer_does_not_say_why_so_the_disk_is_asked(tmp_path, monkeypatch):
    assert not disk_is_full(TORCH, tmp_path)
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 4096)
    assert disk_is_full(TORCH, tmp_path / "not" / "there")
    assert not disk_is_full(ValueError("of another kind"), tmp_path)


def test_errors_that_are_our_own_stay_tracebacks(tmp_path):
    def main(run, args):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_json(path, {"a": 1})

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["manifest.json"]


def test_rows_after_the_checkpoint_and_a_torn_one_leave_the_file_that_training_goes_on_with(tmp_path):
    file = tmp_path / "train.jsonl"
    assert cut_back(file, 4) == [] and not file.exists()
    file.write_text('{"step": 3, "text": "é"}\n{"step": 4}\n{"step": 6}\n{"step": 9, "te')
    assert cut_back(file, 4) == [{"step": 3, "text": "é"}, {"step": 4}]
    assert file.read_text() == '{"step": 3, "text": "é"}\n{"step": 4}\n'


def test_damaged_rows_leave_the_file_with_a_line(tmp_path, capsys):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"step": 1}\n[]\n{"stdp": 2}\n{"step": 2, "text": "\xff"}\n{"step": 3}\n{"step')
    assert cut_back(file, 3) == [{"step": 1}, {"step": 3}]
    assert f"{file}: removed 3 damaged rows" in capsys.readouterr().out
    cut_back(file, 3)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff", "[" * 20_000])
def test_json_that_is_torn_is_empty(tmp_path, text):
    (tmp_path / "x.json").write_text(text, errors="surrogateescape")
    assert read_json(tmp_path / "x.json") == {}
