"""Tokens lie on disk once, in an order that is the same whatever the launch; what is damaged or foreign is named."""

import json
import os
import threading
import time

import numpy as np
import pytest
import xxhash
from datasets import Dataset
from token_toys import corpus_of, documents_of, holds, ids_of, jsonl, killed_after, shards_of, texts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from training_toys import TEXTS
from transformers import PreTrainedTokenizerFast

from llmrecipes.config import DataArguments, DatasetSource, InputError, ModelArguments
from llmrecipes.data.streams import text_source
from llmrecipes.tokenizers import load_tokenizer, train_tokenizer
from llmrecipes.tokens import __main__ as ahead
from llmrecipes.tokens import building
from llmrecipes.tokens import sources as sources_of_tokens
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import TokenBlocks
from llmrecipes.tokens.corpus import build_blocks
from llmrecipes.tokens.shards import TokenShards


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_hold_each_document_as_the_tokenizer_gives_it(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_TOKENS", 300)
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 7)
    documents = [*texts("Ann", 60), "Zoë <|im_end|> in the middle", "x" * 400]
    shards = shards_of(jsonl(tmp_path / "a.jsonl", documents), tokenizer, tmp_path)
    assert len(shards.manifest["shards"]) > 3 and holds(shards, documents, tokenizer)
    read = [tokenizer.decode(ids[:-1]) for ids in documents_of(shards)]
    assert np.concatenate(shards.hashes()).tolist() == [xxhash.xxh3_64_intdigest(text.encode()) for text in read]
    assert (shards.manifest["documents"], shards.manifest["bytes"]) == (62, sum(len(t.encode()) for t in documents))
    crossing = np.empty(40, np.int64)
    shards.read(shards.starts[1] - 20, crossing)
    assert crossing.tolist() == ids_of(shards)[shards.starts[1] - 20 :][:40]
    raw = np.fromfile(shards.folder / "00000.ds", "<u2"), np.fromfile(shards.folder / "00000.ds.index", "<u8")
    assert raw[0].tolist() == ids_of(shards)[: shards.starts[1]] and raw[1][-1] == len(raw[0]), "datatrove's format"


def test_a_tokenizer_that_cuts_and_pads_elsewhere_does_not_here(tokenizer, tmp_path):
    path, plain = jsonl(tmp_path / "a.jsonl", texts("Ann", 9)), building.tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a b c"], truncation=True, max_length=2, padding=True)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.encode_special_tokens = True  # as a call with split_special_tokens leaves it
    assert building.tokenizer_fingerprint(tokenizer) == plain
    assert holds(shards_of(path, tokenizer, tmp_path), texts("Ann", 9), tokenizer)


def test_texts_that_are_damaged_or_whole_files_are_counted(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(building, "LONG", 50)
    shards_of(jsonl(tmp_path / "a.jsonl", ["a\0b", "Ann has hats. " * 9, "Ann"]), tokenizer, tmp_path)
    said = capsys.readouterr().out
    assert "1 of 3 rows are texts with NUL characters, which are learned (first: 'a\\x00b')" in said
    assert "1 of 3 rows are texts of more than 50 characters (first: 'Ann has hats." in said


@pytest.mark.parametrize("split", [True, False])
def test_a_special_token_in_a_text_is_text_unless_said(split, tokenizer, tmp_path, capsys):
    path = jsonl(tmp_path / "a.jsonl", ["Ann has a hat.", "The end <|im_end|> of it.", "x <|im_end|>"])
    shards = building.require_tokens(text_source(DatasetSource(path), 0), tokenizer, tmp_path, False, split)
    learned = "text (`split_special_tokens: false` takes it for the token)" if split else "that token"
    said = f"a.jsonl: 2 of 3 rows are texts that spell out a special token, which is learned as {learned} (first: 'The end"
    assert said in capsys.readouterr().out
    ends = ids_of(shards).count(tokenizer.eos_token_id)  # of a document, and <|im_end|>, which is also EOS
    assert (ends, len(documents_of(shards))) == ((3, 3) if split else (5, 3))
    held_out = Dataset.from_dict({"text": ["The end <|im_end|> of it."]})
    blocks = build_blocks(held_out, tokenizer, 4, 1, split_special=split)
    assert (tokenizer.eos_token_id in ids_of(blocks.streams[0])[:-1]) != split
    own = [DatasetSource(str(shards.folder))]
    assert corpus_of(DataArguments(datasets=own), tokenizer, tmp_path, length=8, max_steps=1).num_documents == 3
    assert said in capsys.readouterr().out, "of shards that are a source too"


def test_a_special_token_that_a_tokenizer_finds_all_the_same_is_said(tmp_path, capsys):
    words = Tokenizer(WordLevel({"[UNK]": 0, "[SEP]": 1, "Ann": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    other = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[SEP]")
    assert ids_of(shards_of(jsonl(tmp_path / "a.jsonl", ["Ann [SEP] Ann"]), other, tmp_path)) == [2, 1, 2, 1]
    assert "1 of 1 rows are texts that spell out a special token, which is learned as that token" in capsys.readouterr().out


def test_texts_with_unknown_characters_are_counted(tmp_path, capsys):
    words = Tokenizer(WordLevel({"[UNK]": 0, "[SEP]": 1, "Ann": 2, "has": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[SEP]")
    shards_of(jsonl(tmp_path / "b.jsonl", ["Ann has", "Bob has"]), other, tmp_path)
    said = "b.jsonl: 1 of 2 rows are texts with characters that the tokenizer does not know (first: 'Bob has')"
    assert said in capsys.readouterr().out


def test_text_is_tokenized_once_and_anew_when_it_or_the_tokenizer_changes(tokenizer, tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", texts("Ann", 9))
    first = shards_of(path, tokenizer, tmp_path)
    built, real = [], building._build
    monkeypatch.setattr(building, "_build", lambda *args: built.append(args) or real(*args))
    assert shards_of(path, tokenizer, tmp_path).folder == first.folder and not built
    shards_of(path, train_tokenizer(TEXTS, 275, 128), tmp_path)
    jsonl(tmp_path / "a.jsonl", texts("Bob", 9))
    assert holds(shards_of(path, tokenizer, tmp_path), texts("Bob", 9), tokenizer) and len(built) == 2
    monkeypatch.setattr(building, "ORDER", 0)
    assert shards_of(path, tokenizer, tmp_path).folder != first.folder and len(built) == 3, "another order of documents"


def test_documents_of_a_sorted_source_share_blocks_with_those_of_another_kind(tokenizer, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*texts("Ann", 90), *texts("Bob", 90)])
    shards = shards_of(path, tokenizer, tmp_path)
    rows = TokenBlocks([shards], 200)
    read = [tokenizer.decode(rows[i]["input_ids"]) for i in range(len(rows))]
    assert len(read) > 9 and all("Ann has" in text and "Bob has" in text for text in read)
    assert ids_of(shards_of(path, tokenizer, tmp_path / "again")) == ids_of(shards)


def test_of_those_who_ask_at_once_one_tokenizes_and_the_others_wait(tokenizer, tmp_path, monkeypatch):
    path, built, real = jsonl(tmp_path / "a.jsonl", texts("Ann", 200)), [], building._build
    monkeypatch.setattr(building, "_build", lambda *args: built.append(args) or real(*args))
    found = []
    threads = [threading.Thread(target=lambda: found.append(ids_of(shards_of(path, tokenizer, tmp_path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and found == [ids_of(shards_of(path, tokenizer, tmp_path))] * 4


@pytest.mark.parametrize("kills", [1, 3])
def test_killed_while_tokenizing_goes_on_and_ends_equal(tokenizer, tmp_path, monkeypatch, kills):
    monkeypatch.setattr(building, "SHARD_TOKENS", 300)
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 7)
    rows = [{"text": text} for text in texts("Ann", 80)] + [{"text": None}] + [{"text": t} for t in texts("Bob", 30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = shards_of(str(tmp_path / "a.jsonl"), tokenizer, tmp_path / "whole", drop_bad_rows=True)
    real = building.build_encoder

    for _ in range(kills):
        monkeypatch.setattr(building, "build_encoder", killed_after(real, 5))
        with pytest.raises(KeyboardInterrupt):
            shards_of(str(tmp_path / "a.jsonl"), tokenizer, tmp_path, drop_bad_rows=True)
    monkeypatch.setattr(building, "build_encoder", real)
    again = shards_of(str(tmp_path / "a.jsonl"), tokenizer, tmp_path, drop_bad_rows=True)
    digests = lambda shards: [{k: f["sha256"] for k, f in shard["files"].items()} for shard in shards.manifest["shards"]]
    assert digests(again) == digests(whole) and len(digests(whole)) > 4
    assert (
        again.manifest["notes"] == whole.manifest["notes"] and "1 of 111 rows are not usable" in again.manifest["notes"][0]
    )


def test_damaged_and_foreign_shards_are_named(tokenizer, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", texts("Ann", 30))
    folder = shards_of(path, tokenizer, tmp_path).folder
    file = folder / "00000.ds"
    good = file.read_bytes()
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(good[:-2])
    with pytest.raises(InputError, match=rf"00000.ds: has {len(good) - 2:,} bytes instead of {len(good):,}; remove"):
        shards_of(path, tokenizer, tmp_path)
    file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    os.utime(file, ns=times)
    with pytest.raises(InputError, match="00000.ds: has been altered"):
        shards_of(path, tokenizer, tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="00000.ds: is gone"):
        shards_of(path, tokenizer, tmp_path)
    file.write_bytes(good)
    other = train_tokenizer(TEXTS, 275, 128)
    with pytest.raises(InputError, match="was made by another tokenizer"):
        corpus_of(DataArguments([str(folder)]), other, tmp_path)
    assert corpus_of(DataArguments([str(folder)]), tokenizer, tmp_path).num_documents == 30


def test_of_a_large_shard_parts_are_read_and_all_of_it_where_it_was_touched_or_by_key(tokenizer, tmp_path, monkeypatch):
    from llmrecipes.tokens import shards as module

    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1)
    path = jsonl(tmp_path / "a.jsonl", texts("Ann", 90))
    file = shards_of(path, tokenizer, tmp_path).folder / "00000.ds"
    good, times = bytearray(file.read_bytes()), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    read = {(len(good) - 1) * place // (module.SAMPLES - 1) for place in range(module.SAMPLES)}
    good[next(i for i in range(len(good)) if i not in read)] ^= 1
    file.write_bytes(good)
    with pytest.raises(InputError, match="altered"):
        shards_of(path, tokenizer, tmp_path)  # another time of change
    os.utime(file, ns=times)
    shards_of(path, tokenizer, tmp_path)
    with pytest.raises(InputError, match="altered"):
        shards_of(path, tokenizer, tmp_path, whole=True)


def test_tokens_made_ahead_are_those_that_pretraining_reads(tokenizer, tmp_path, monkeypatch, capsys):
    data = DataArguments(datasets=[jsonl(tmp_path / "a.jsonl", texts("Ann", 200))], test_split_size=9)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "pretrain.yaml").write_text(
        f"datasets: [{{path: {tmp_path / 'a.jsonl'}}}]\ntest_split_size: 9\nseed: 3\nmax_length: 16\n"
        f"tokenizer_name_or_path: {tmp_path / 'tokenizer'}\n"
    )
    words = ["x", "--config", str(tmp_path / "pretrain.yaml"), "--tokens_dir", str(tmp_path / "tokens")]
    monkeypatch.setattr("sys.argv", words)
    ahead.main()
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").rglob("*.ds*")}
    loaded = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "tokenizer")))
    found = corpus_of(data, loaded, tmp_path, TokenArguments(tokens_dir=str(tmp_path / "tokens")), seed=3)
    assert made == {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").rglob("*.ds*")} and len(made) == 3
    assert str(found.shards[0].folder) in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--max_lenght", "3"])
    with pytest.raises(InputError, match="max_lenght"):
        ahead.main()


def test_encoding_in_parts_changes_no_shard(tokenizer, tmp_path, monkeypatch):
    file = jsonl(tmp_path / "a.jsonl", texts("Ann", 200))
    whole = shards_of(file, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(building, "ENCODED_CHARACTERS", 100)
    parts = shards_of(file, tokenizer, tmp_path / "parts")
    contents = [{made.name: made.read_bytes() for made in shards.folder.glob("*.ds*")} for shards in (whole, parts)]
    assert contents[0] == contents[1] and len(contents[0]) == 3


def test_held_out_texts_are_chosen_once_by_those_who_ask_at_once(tokenizer, tmp_path, monkeypatch):
    data = DataArguments(datasets=[jsonl(tmp_path / "a.jsonl", texts("Ann", 200))], test_split_size=9)
    real, chosen, found = sources_of_tokens._choose, [], []
    monkeypatch.setattr(sources_of_tokens, "_choose", lambda *args: time.sleep(0.1) or chosen.append(args) or real(*args))
    ask = lambda: found.append(corpus_of(data, tokenizer, tmp_path).held_out["text"][:])
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(chosen) == 1 and found == [found[0]] * 4


def test_keys_without_effect_on_tokens_are_refused(tokenizer, tmp_path):
    folder = str(shards_of(jsonl(tmp_path / "a.jsonl", texts("Ann", 90)), tokenizer, tmp_path).folder)
    assert corpus_of(DataArguments(datasets=[{"path": folder, "name": "a", "weight": 1}]), tokenizer, tmp_path)
    for keys in ({"max_rows": 9}, {"split": "train[:10%]"}, {"columns": ["text"]}, {"drop_bad_rows": True}):
        with pytest.raises(InputError, match=f"`{next(iter(keys))}` has no effect on text that is already tokenised"):
            corpus_of(DataArguments(datasets=[{"path": folder, **keys}]), tokenizer, tmp_path)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SHARD_TOKENS", 300)
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 7)
    path, real, left = jsonl(tmp_path / "a.jsonl", texts("Ann", 90)), building.ShardWriter.add, [60]

    def add(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(self, *args)

    monkeypatch.setattr(building.ShardWriter, "add", add)
    with pytest.raises(InputError, match="the disk is full; the finished shards are kept"):
        shards_of(path, tokenizer, tmp_path)
    assert list((tmp_path / "tokens").glob("*/00001.ds"))
    monkeypatch.setattr(building.ShardWriter, "add", real)
    assert holds(shards_of(path, tokenizer, tmp_path), texts("Ann", 90), tokenizer)


def test_shards_are_read_from_disk_and_not_held(tokenizer, tmp_path):
    shards = shards_of(jsonl(tmp_path / "a.jsonl", texts("Ann", 30)), tokenizer, tmp_path)
    tokens = TokenShards(shards.folder).tokens_of(0)
    assert not tokens.flags.owndata and not tokens.flags.writeable


def test_a_large_files_digest_is_noted_and_taken_anew_when_it_changes(tmp_path, monkeypatch):
    from llmrecipes import durable

    file, read, real = tmp_path / "large", [], durable._read_digest
    monkeypatch.setattr(durable, "LARGE", 3)
    monkeypatch.setattr(durable, "_read_digest", lambda path: read.append(path) or real(path))
    file.write_bytes(b"abcd")
    assert durable.file_digest(file) == durable.file_digest(file) == real(file) and len(read) == 1
    file.write_bytes(b"abce!")
    assert durable.file_digest(file) == real(file) and len(read) == 2
