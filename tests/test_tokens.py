"""Tokens lie on disk once, in an order that is the same whatever the launch; what is damaged or foreign is named."""

import gzip
import json
import os
import re
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import xxhash
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from test_training import CONFIG, TEXTS, arguments
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedTokenizerFast

from llmrecipes.attention import BORDERS
from llmrecipes.config import DataArguments, DatasetSource, InputError, ModelArguments
from llmrecipes.data.streams import text_source
from llmrecipes.data.tables import load_table
from llmrecipes.models import build_policy, train_tokenizer
from llmrecipes.pretraining import InOrder, PretrainTrainer
from llmrecipes.tokenizers import load_tokenizer
from llmrecipes.tokens import __main__ as ahead
from llmrecipes.tokens import building
from llmrecipes.tokens import sources as sources_of_tokens
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import TokenBlocks, collate_blocks, collate_flat, collator_for
from llmrecipes.tokens.corpus import Corpus, build_blocks, load_corpus
from llmrecipes.tokens.mixing import Mixture, share_out
from llmrecipes.tokens.permutation import key_of, permute
from llmrecipes.tokens.shards import TokenShards


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, 128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(word, number):
    return [f"{word} has {i} hats{', red ones' * (i % 5)}." for i in range(number)]


def shards_of(path, tokenizer, tmp_path, whole=False, **keys):
    return building.require_tokens(text_source(DatasetSource(path, **keys), 0), tokenizer, tmp_path / "tokens", whole)


def ids_of(shards):
    ids = np.empty(shards.num_tokens, np.int64)
    shards.read(0, ids)
    return ids.tolist()


def documents_of(shards):
    return [ids.tolist() for ids in np.split(ids_of(shards), shards.document_ends(0, shards.num_tokens))[:-1]]


def holds(shards, documents, tokenizer):
    """Each of the documents once, as the tokenizer gives it, in whatever order."""
    expected = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents, split_special_tokens=True)["input_ids"]]
    return sorted(documents_of(shards)) == sorted(expected)


def corpus_of(data, tokenizer, tmp_path, tokens=None, length=16, **training) -> Corpus:
    args = arguments(tmp_path / "out", **({"per_device_train_batch_size": 2, "max_steps": 50} | training))
    return load_corpus(data, tokens or TokenArguments(), tokenizer, args, length)


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


def killed_after(real, batches):
    """A `build_encoder` as `real`, whose encoder is interrupted after some batches."""

    def build(tokenizer, *how):
        encode, left = real(tokenizer), [batches]

        def some(texts):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return encode(texts)

        return some

    return build


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


# --- sources as they lie on disk ------------------------------------------------------------------------------------


def read(path, **keys):
    return list(text_source(DatasetSource(str(path), **keys), 0).texts())


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


# --- order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 65, 1000, 70_001])
def test_permutations_send_every_number_to_another_and_differ_by_key(size):
    one, other = (permute(np.arange(size), size, key_of(7, key)) for key in (0, 1))
    assert np.array_equal(np.sort(one), np.arange(size))
    assert size < 17 or (one != other).mean() > 0.8 and (one != np.arange(size)).mean() > 0.8
    keys = key_of(7, np.arange(size) % 2)
    assert np.array_equal(permute(np.arange(size), size, keys), np.where(np.arange(size) % 2, other, one))


def test_shares_are_exact_in_a_cycle_and_nearly_so_in_any_part():
    sizes, weights = [900, 70, 5000], np.array([0.67, 0.055, 0.275])
    mixture = Mixture(sizes, [share_out(weights, 10**6)], [10**6], seed=3)
    owners = np.searchsorted(mixture.first_blocks, mixture.locate(range(5000)), side="right") - 1
    assert np.bincount(owners[:2000]).tolist() == [1340, 110, 550]
    counts = np.stack([np.cumsum(owners == i) for i in range(3)], axis=1)
    assert np.abs(counts - np.arange(1, 5001)[:, None] * weights).max() < 2
    assert mixture.drawn(4321).tolist() == counts[4320].tolist()


def test_every_block_comes_once_an_epoch_and_epochs_differ():
    mixture = Mixture([30, 100], [share_out(np.array([0.5, 0.5]), 10**6)], [10**6], seed=3)
    blocks = mixture.locate(range(400))
    small = blocks[blocks < 30]
    assert len(small) == 200 and sorted(small[:30]) == sorted(small[30:60]) == list(range(30))
    assert small[:30].tolist() != small[30:60].tolist()
    assert np.array_equal(mixture.blocks_of(0, 0, 200), small)
    plain = Mixture([30, 100], None, [10**6], seed=3)
    assert sorted(plain.locate(range(130))) == sorted(plain.locate(range(130, 260))) == list(range(130))


def test_a_sample_depends_on_nothing_but_its_number():
    make = lambda seed=3: Mixture([3000, 10**9], [share_out(np.array([1, 9]), 10**10)], [10**10], seed)
    numbers = np.array([3 * 10**9, 5, 40_000, 6, 3 * 10**9 + 1])
    together = make().locate(numbers)
    assert [int(make().locate([n])[0]) for n in numbers] == together.tolist()
    assert (make(4).locate(numbers) != together).any()


def test_phases_go_on_with_the_blocks_that_are_left():
    weights = np.array([[0.9, 0.1], [0.2, 0.8]])
    mixture = Mixture([2000, 900], [share_out(row, 1000) for row in weights], [1234, 2000], seed=1)
    blocks = mixture.locate(range(2000))
    small, large = blocks[blocks >= 2000], blocks[blocks < 2000]
    assert len(set(small)) == len(small) and len(set(large)) == len(large), "nothing is read again"
    assert 0.19 < (blocks[1234:] < 2000).mean() < 0.21 and mixture.drawn(2000).tolist() == [len(large), len(small)]


def test_epochs_are_capped_and_the_rest_goes_to_the_others():
    sizes, weights = np.array([100, 10_000, 10_000]), np.array([0.5, 0.3, 0.2])
    counts = share_out(weights, 8765, room=4 * sizes)
    mixture = Mixture(sizes, [counts], [8765], seed=0)
    drawn = mixture.drawn(8765)
    assert 380 <= drawn[0] <= 400 and drawn.sum() == 8765 and drawn[1] / drawn[2] == pytest.approx(1.5, rel=0.02)
    with pytest.raises(InputError, match="max_epochs: the sources have room for .* of the 8,765 blocks"):
        share_out(weights, 8765, room=sizes // 4)


@pytest.mark.parametrize(
    ("sizes", "samples"), [((10**6, 500), 10**6), ((10**6, 1500), 10**6), ((4 * 10**9, 6 * 10**6), 36 * 10**8)]
)
def test_a_small_source_gives_all_that_its_epochs_allow_however_long_the_phase(sizes, samples):
    counts = share_out(np.array([0.9, 0.1]), samples, room=np.array(sizes))
    assert 0.99 * sizes[1] <= counts[1] * samples / counts.sum() <= sizes[1]


def test_what_a_cap_takes_from_a_source_is_said_for_each_phase(tokenizer, tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 300)), jsonl(tmp_path / "b.jsonl", texts("Bob", 20))
    data = DataArguments([{"path": a, "weight": [9, 1], "name": "web"}, {"path": b, "weight": [1, 9], "name": "books"}])
    tokens = TokenArguments(phases=[0.5, 0.5], max_epochs=1)
    corpus = corpus_of(data, tokenizer, tmp_path, tokens, max_steps=100)
    said = capsys.readouterr().out
    left = corpus.seen(100)[1]["tokens"] - corpus.seen(50)[1]["tokens"]
    told = re.search(r"books: its weight says 90 % in phase 2, but max_epochs 1 leaves it (.*) %; the others", said)
    assert float(told[1]) == pytest.approx(100 * left / (100 * 16), abs=1) and "in phase 1" not in said


def test_a_config_that_asks_for_too_much_is_one_line(tokenizer, tmp_path):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob"))
    (tmp_path / "tiny.jsonl").write_text('{"text": "a"}\n')
    run = lambda sources, **keys: corpus_of(DataArguments(sources), tokenizer, tmp_path, TokenArguments(**keys))
    weighted = [{"path": a, "weight": [1, 2]}, {"path": b, "weight": 3}]
    for sources, keys, message in (
        ([a], {"max_epochs": 0.5}, r"max_epochs: the steps read the data \d\.\d\d times, above 0.5"),
        (weighted, {}, "2 weights for 1 phases"),
        ([a, b], {"phases": [0.5, 0.5]}, "phases: no source has a weight"),
        ([{"path": a, "weight": 1}, b], {}, "give every source a weight, or none"),
        (
            [{"path": a, "weight": [1, 0]}, {"path": b, "weight": [1, 0]}],
            {"phases": [0.5, 0.5]},
            "all weights of a phase are 0",
        ),
        ([a, str(tmp_path / "tiny.jsonl")], {}, "tiny.jsonl: 2 tokens do not fill a block of 16"),
        ([str(tmp_path / "tiny.jsonl")], {}, "0 blocks of 16 tokens are less than one batch of 2"),
    ):
        with pytest.raises(InputError, match=message):
            run(sources, **keys)
    with pytest.raises(InputError, match="phases: .* are not parts of the steps"):
        TokenArguments(phases=[0.5, 0.6])


def test_a_source_given_twice_is_said(tokenizer, tmp_path, capsys):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", texts(name, 40)) for name in ("Ann", "Bob"))
    corpus_of(DataArguments([a, b]), tokenizer, tmp_path)
    assert "same texts" not in capsys.readouterr().out
    corpus_of(DataArguments([a, b, {"path": a, "name": "again"}]), tokenizer, tmp_path)
    assert f"warning: again has the same texts as {a}, which are so read twice as often" in capsys.readouterr().out


def test_what_was_read_is_what_is_said(tokenizer, tmp_path, capsys):
    a, b = jsonl(tmp_path / "a.jsonl", texts("Ann", 300)), jsonl(tmp_path / "b.jsonl", texts("Bob", 5))
    data = DataArguments([{"path": a, "weight": [3, 1], "name": "web"}, {"path": b, "weight": [1, 3]}])
    corpus = corpus_of(data, tokenizer, tmp_path, TokenArguments(phases=[0.8, 0.2]), max_steps=100)
    assert "warning: " in capsys.readouterr().out and corpus.batch == 2
    for steps in (3, 100):
        blocks = corpus.blocks.mixture.locate(range(2 * steps))
        for place, facts in enumerate(corpus.seen(steps)):
            first, last = corpus.blocks.first_blocks[place : place + 2]
            own = blocks[(blocks >= first) & (blocks < last)] - first
            ends = corpus.shards[place].document_ends(0, corpus.shards[place].num_tokens)
            documents = {d for w in own for d in np.searchsorted(ends, range(w * 16, w * 16 + 16), side="right")}
            assert facts["tokens"] == 16 * len(own) and facts["unique_tokens"] == 16 * len(set(own))
            assert facts["documents"] == len(documents), "without those in the last tokens, which fill no block"
            assert facts["share"] == len(own) / len(blocks) and facts["epochs"] == len(own) / (last - first)


# --- in a trainer ---------------------------------------------------------------------------------------------------------


def rows_of_steps(corpus, processes, batch, workers=0):
    """Of each step, the token ids that `processes` are given, sorted."""
    order = InOrder(len(corpus.blocks))
    parts = [BatchSamplerShard(BatchSampler(order, batch, False), processes, rank) for rank in range(processes)]
    loaders = [
        DataLoader(corpus.blocks, batch_sampler=part, collate_fn=collate_blocks, num_workers=workers) for part in parts
    ]
    micro = [torch.cat([found["input_ids"] for found in batches]) for batches in zip(*loaders)]
    per_step = 8 // (batch * processes)
    steps = [torch.cat(micro[i : i + per_step]) for i in range(0, len(micro), per_step)]
    return [sorted(step.tolist()) for step in steps]


def test_a_step_has_the_same_rows_on_any_number_of_processes_and_workers(tokenizer, tmp_path):
    paths = [jsonl(tmp_path / f"{name}.jsonl", texts(name, 100)) for name in ("Ann", "Bob")]
    data = DataArguments([{"path": path, "weight": i + 1} for i, path in enumerate(paths)])
    corpus = corpus_of(data, tokenizer, tmp_path, per_device_train_batch_size=8)
    one = rows_of_steps(corpus, 1, 8)
    assert len(one) == len(corpus.blocks) // 8 and one[0] != one[1]
    for processes, batch, workers in ((2, 4, 0), (4, 2, 0), (1, 2, 0), (2, 1, 2)):
        assert rows_of_steps(corpus, processes, batch, workers) == one


def test_a_run_that_goes_on_reads_only_what_is_left_and_ends_equal(tokenizer, tmp_path):
    """Through several epochs of the data, and with the rows of a step cut up otherwise."""
    data = DataArguments([jsonl(tmp_path / "a.jsonl", texts("Ann", 12))])
    asked = []

    class Noted(TokenBlocks):
        def __getitems__(self, rows):
            asked.extend(rows)
            return super().__getitems__(rows)

    def train(output_dir, rows, accumulation, resume=None):
        corpus = corpus_of(data, tokenizer, tmp_path, per_device_train_batch_size=rows, max_steps=8,
                           gradient_accumulation_steps=accumulation)  # fmt: skip
        corpus.blocks.__class__ = Noted
        torch.manual_seed(0)
        args = arguments(output_dir, max_steps=8, save_steps=5, per_device_train_batch_size=rows,
                         gradient_accumulation_steps=accumulation, lr_scheduler_type="constant")  # fmt: skip
        trainer = PretrainTrainer(model=build_policy(CONFIG, tokenizer), args=args, train_dataset=corpus.blocks,
                                  data_collator=collate_blocks)  # fmt: skip
        asked.clear()
        trainer.train(resume_from_checkpoint=resume)
        return len(corpus.blocks), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    epoch, losses = train(tmp_path / "whole", 2, 2)
    assert epoch < 16 and asked[:32] == list(range(32)), "several epochs, one after the other"
    for rows, accumulation, tolerance in ((2, 2, 0), (1, 4, 1e-5)):
        _, again = train(tmp_path / f"rest{rows}", rows, accumulation, str(tmp_path / "whole" / "checkpoint-5"))
        assert asked[:12] == list(range(20, 32)) and again == pytest.approx(losses, rel=tolerance)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_with_reset_attention_a_document_is_what_it_is_alone(tokenizer, tmp_path, kind):
    torch.manual_seed(0)
    config = CONFIG if kind == "llama" else {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = build_policy(config, tokenizer).eval()
    blocks = build_blocks(Dataset.from_dict({"text": texts("Ann", 40)}), tokenizer, 64, 1, reset_attention=True)
    rows = [blocks[i] for i in range(3)]
    batch = collator_for(model, True)(rows)
    assert set(batch) == {"input_ids", "labels", "position_ids", *BORDERS} and (batch["position_ids"] == 0).sum() > 6
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        plain = model(input_ids=batch["input_ids"], use_cache=False).logits
        flat = model(**{k: v for k, v in collate_flat(rows).items() if k != "labels"}, use_cache=False).logits
        for row in range(3):
            starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 64]
            for first, last in zip(starts, starts[1:]):
                alone = model(input_ids=batch["input_ids"][row : row + 1, first:last], use_cache=False).logits
                torch.testing.assert_close(logits[row : row + 1, first:last], alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(flat.view_as(logits), logits, atol=2e-5, rtol=1e-4)
    assert (plain - logits).abs().max() > 1e-2, "without it, documents see each other"
    labels = collate_flat(rows)["labels"].view(3, 64)
    assert (labels[:, 0] == -100).all() and torch.equal(labels[:, 1:], batch["labels"][:, 1:])


def test_the_trainer_resets_attention_in_training_and_evaluation(tokenizer, tmp_path):
    blocks = build_blocks(Dataset.from_dict({"text": texts("Ann", 40)}), tokenizer, 64, 1, reset_attention=True)
    torch.manual_seed(0)
    model = build_policy(CONFIG, tokenizer).eval()
    trainer = PretrainTrainer(model=model, args=arguments(tmp_path), train_dataset=blocks, eval_dataset=blocks,
                              data_collator=collate_blocks)  # fmt: skip
    with torch.no_grad():
        rows = [collate_blocks([blocks[i]]) for i in range(len(blocks))]
        losses = [model(**row, use_cache=False).loss.item() for row in rows]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_model_without_borders_of_documents_refuses_reset_attention():
    model = AutoModelForCausalLM.from_config(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4))
    with pytest.raises(InputError, match="reset_attention: mamba does not recognise document boundaries"):
        collator_for(model, True)


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
