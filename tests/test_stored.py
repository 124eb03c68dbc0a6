"""Rows of a large source are converted, checked and tokenized once: later starts find them on disk, and none holds them."""

import json
from functools import partial

import pytest
from test_preview import SHORT, model, tokenizer, turns  # noqa: F401 (fixtures)
from test_vocabulary import run_recipe

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data import stored
from llmrecipes.data.stored import load_stored
from llmrecipes.data.tables import load_table
from llmrecipes.templates import row_check

SFT, PAIRS = ("messages", "prompt-completion"), ("preference",)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr(stored, "PART", 10)
    return tmp_path / "cache" / "rows"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chats(count):
    return [{"messages": turns(f"{SHORT} {i}", f"Nine metres and {i}.")} for i in range(count)]


def refuse(*args, **kwargs):
    raise AssertionError("is done again")


def test_stored_rows_are_those_of_memory_read_once(cache, tmp_path, monkeypatch, capsys):
    rows = [*chats(24), {"messages": []}, *chats(3)[1:], {"instruction": "Say 3.", "output": "3", "number": 1}]
    file = DatasetSource(write(tmp_path / "a.jsonl", rows), drop_bad_rows=True)
    given, notes = load_table(file, 0, SFT)
    told = capsys.readouterr().out
    kept, again = load_stored(file, 0, SFT)
    assert kept[:] == given[:] and kept.features == given.features and len(kept.cache_files) == 3
    assert (again.kind, again.counts) == (notes.kind, notes.counts) and capsys.readouterr().out == told != ""
    monkeypatch.setattr(stored, "standard_rows", refuse)
    found, _ = load_stored(file, 7, SFT)
    assert found._fingerprint == kept._fingerprint and capsys.readouterr().out == told


def test_a_large_file_of_empty_lines_is_empty(cache, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" * 9)
    with pytest.raises(InputError, match="a.jsonl: is empty; nothing to read in split 'train'"):
        load_stored(DatasetSource(str(tmp_path / "a.jsonl")), 0, SFT)


def test_rows_are_read_anew_when_anything_they_depend_on_changes(cache, tmp_path, tokenizer, monkeypatch):  # noqa: F811
    path = write(tmp_path / "a.jsonl", chats(5))
    load = partial(load_stored, seed=0, shapes=SFT)
    load(DatasetSource(path), check=row_check(tokenizer))
    name = lambda drop=False, **keys: load(DatasetSource(path, drop_bad_rows=drop), **keys)[0]._fingerprint
    names = [name(), name(check=row_check(tokenizer)), name(True), name(shapes=("messages",))]
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + "{# another #}")
    names.append(name(check=row_check(tokenizer)))
    write(tmp_path / "a.jsonl", chats(6))
    names.append(name())
    monkeypatch.setattr(stored, "CODE", ["rows.py"])
    names.append(name())
    assert len(set(names)) == len(names) and len(load(DatasetSource(path))[0]) == 6


def test_damaged_rows_are_named_and_a_bad_one_leaves_none(cache, tmp_path):
    path = write(tmp_path / "a.jsonl", [*chats(25), {"messages": "x"}])
    with pytest.raises(InputError, match="a.jsonl, row 26.*drop_bad_rows"):
        load_stored(DatasetSource(path), 0, SFT)
    assert not [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"]
    write(tmp_path / "a.jsonl", chats(25))
    load_stored(DatasetSource(path), 0, SFT)
    part = next(cache.glob("*/00001.arrow"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match="00001.arrow: is damaged; remove .*, and its rows will be read anew"):
        load_stored(DatasetSource(path), 0, SFT)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
def test_a_second_start_tokenizes_nothing(cache, tmp_path, model, stage, monkeypatch, capsys):  # noqa: F811
    """Whatever is made of the rows lies in their folder; what is made again would be another file there."""
    side = lambda answer: turns("", answer)[1:]
    rows = [
        {"prompt": turns(f"{SHORT} {i}", "")[:1], "chosen": side(f"Nine {i}."), "rejected": side("Go.")} for i in range(30)
    ]
    path = write(tmp_path / "a.jsonl", chats(30) if stage == "sft" else rows)
    argv = ["--model_name_or_path", model.model_name_or_path, "--datasets", path, "--test_split_size", "4", "--preview", "1"]
    argv += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--per_device_train_batch_size", "2"]
    found = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_recipe(stage, argv)
        found.append(({file.name for file in cache.rglob("*.arrow")}, capsys.readouterr().out.replace("tokens: ", "")))
    assert found[0] == found[1] and len(found[0][0]) > 5
