"""Data sets of a Hub, streamed or not, at one commit: the documents, tokens and order of files, whatever breaks off."""

import json
from itertools import islice

import numpy as np
import pytest
from corpora import PLAIN, run_build
from data_hub import data_hub  # noqa: F401 (a fixture)
from test_tokens import cache, tokenizer  # noqa: F401 (fixtures)
from token_toys import corpus_of, jsonl, killed_after, rows_of_steps, shards_of, texts
from torch.utils.data import DataLoader

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_train_eval
from llmrecipes.data.streams import text_source
from llmrecipes.pretraining import InOrder
from llmrecipes.tokens import building
from llmrecipes.tokens.blocks import collate_blocks

ROWS = texts("Ann", 90)
STREAM = {"path": "org/set", "streaming": True}


def lines(rows, column="text"):
    return "".join(json.dumps({column: text}) + "\n" for text in rows).encode()


@pytest.fixture
def hub(data_hub):  # noqa: F811
    """A data set of three files on a hub, and what came after it on the branch main."""
    files = {f"data/train-{i}.jsonl": lines(ROWS[30 * i : 30 * (i + 1)]) for i in range(3)}
    data_hub.old = data_hub.commit("org/set", files)
    return data_hub


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_TOKENS", 300)
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def digests(shards):
    return [{kind: file["sha256"] for kind, file in shard["files"].items()} for shard in shards.manifest["shards"]]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_corpus_is_built_of_one_commit_streamed_or_not(hub, tmp_path, streaming):
    build = lambda name, **keys: run_build(tmp_path / name, [{**STREAM, "streaming": streaming, **keys}], **PLAIN)
    found = build("a")
    new = hub.commit("org/set", {"data/train-0.jsonl": lines(["Bob alone is here."])})
    assert build("b", revision=hub.old)["sources"]["set"]["shards"] == found["sources"]["set"]["shards"]
    assert found["total"]["kept"][0] == 90 and found["sources"]["set"]["revision"] == hub.old
    later = build("c")
    assert later["total"]["kept"][0] == 1 and later["sources"]["set"]["revision"] == new
    with pytest.raises(InputError, match="org/none: .*"):
        run_build(tmp_path / "d", [{**STREAM, "path": "org/none", "streaming": streaming}], **PLAIN)


def test_a_stream_gives_the_tokens_of_its_rows_and_is_read_once_per_commit(hub, tokenizer, tmp_path):  # noqa: F811
    streamed = shards_of("org/set", tokenizer, tmp_path, streaming=True)
    assert digests(streamed) == digests(shards_of(jsonl(tmp_path / "a.jsonl", ROWS), tokenizer, tmp_path))
    hub.reads.clear()
    assert shards_of("org/set", tokenizer, tmp_path, streaming=True).folder == streamed.folder
    contents = lambda: [name for _, name in hub.reads if name.startswith("data/")]
    assert not contents()
    first = shards_of("org/set", tokenizer, tmp_path, streaming=True, max_rows=10)
    assert first.manifest["documents"] == 10 and "data/train-2.jsonl" not in contents()
    hub.commit("org/set", {"data/train-0.jsonl": lines(ROWS[:5], "body")})
    renamed = shards_of("org/set", tokenizer, tmp_path, streaming=True, columns={"body": "text"})
    assert renamed.manifest["documents"] == 5
    assert shards_of("org/set", tokenizer, tmp_path, streaming=True, revision=hub.old).folder == streamed.folder
    with pytest.raises(InputError, match="org/set, row 1: .*body"):
        shards_of("org/set", tokenizer, tmp_path, streaming=True)


@pytest.mark.parametrize("kills", [1, 10])
def test_a_stream_killed_goes_on_where_it_was_and_ends_equal(hub, tokenizer, tmp_path, monkeypatch, kills):  # noqa: F811
    whole, real = shards_of("org/set", tokenizer, tmp_path / "whole", streaming=True), building.build_encoder
    for number in range(kills):
        monkeypatch.setattr(building, "build_encoder", killed_after(real, 1 + 8 * (kills == 1) + number % 3))
        with pytest.raises(KeyboardInterrupt):
            shards_of("org/set", tokenizer, tmp_path, streaming=True)
    monkeypatch.setattr(building, "build_encoder", real)
    hub.reads.clear()
    assert digests(shards_of("org/set", tokenizer, tmp_path, streaming=True)) == digests(whole) and len(digests(whole)) > 4
    assert (hub.old, "data/train-0.jsonl") not in hub.reads[1:], "files that are done are not read again"


def test_a_connection_that_breaks_is_taken_up_again_or_named(hub, tokenizer, tmp_path):  # noqa: F811
    whole = shards_of("org/set", tokenizer, tmp_path / "whole", streaming=True)
    hub.broken = 2
    assert digests(shards_of("org/set", tokenizer, tmp_path, streaming=True)) == digests(whole)
    hub.broken = 10**6
    with pytest.raises(InputError, match="org/set: out of reach after 4 tries .*the same command continues"):
        shards_of("org/set", tokenizer, tmp_path / "broken", streaming=True)
    hub.broken = 0
    assert digests(shards_of("org/set", tokenizer, tmp_path / "broken", streaming=True)) == digests(whole)


def test_a_streamed_mixture_has_the_order_of_one_of_files_on_any_number_of_processes(hub, tokenizer, tmp_path):  # noqa: F811
    other = {"path": jsonl(tmp_path / "b.jsonl", texts("Bob", 40)), "weight": 1}
    of = lambda source: corpus_of(
        DataArguments([{**source, "weight": 2}, other]), tokenizer, tmp_path, per_device_train_batch_size=8
    )
    files = rows_of_steps(of({"path": jsonl(tmp_path / "a.jsonl", ROWS)}), 1, 8)
    for processes, batch, workers in ((1, 8, 0), (2, 4, 0), (4, 2, 0), (2, 1, 2)):
        assert rows_of_steps(of(STREAM), processes, batch, workers) == files
    assert len(files) > 10
    blocks, order, found = of(STREAM).blocks, InOrder(len(files) * 8), []
    kills = sorted(np.random.default_rng(0).choice(len(files), 10, replace=False).tolist())
    for start, end in zip([0, *kills], [*kills, len(files)]):  # ten kills, each between two steps
        order.skipped = 8 * start
        batches = islice(DataLoader(blocks, 8, sampler=order, collate_fn=collate_blocks), end - start)
        found += [sorted(batch["input_ids"].tolist()) for batch in batches]
    assert found == files


def test_what_a_stream_cannot_do_is_refused(hub, tokenizer, tmp_path):  # noqa: F811
    for keys, message in (
        ({"split": "train[:10%]"}, "`split` 'train\\[:10%\\]' needs all rows at hand"),
        ({"reader": "json:loads"}, "`reader` 'json:loads' needs all rows at hand"),
        ({"path": jsonl(tmp_path / "a.jsonl", ROWS)}, "`streaming` is for data sets of the Hub"),
    ):
        with pytest.raises(InputError, match=message):
            text_source(DatasetSource(**{**STREAM, **keys}), 0)
    with pytest.raises(InputError, match="`streaming` is for texts that pretraining and the tokenizer learn from"):
        load_train_eval(DataArguments([STREAM]), 0, ("messages",))
    with pytest.raises(InputError, match="number of its rows is not known.*give `eval_datasets`"):
        corpus_of(DataArguments([STREAM], test_split_size=0.1), tokenizer, tmp_path)
