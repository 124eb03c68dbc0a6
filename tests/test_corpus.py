"""The build of a corpus: what is kept, what is dropped and why, whatever happens in between."""

import json
import os
import runpy
import threading
from pathlib import Path

import numpy
import pyarrow.parquet
import pytest
from corpora import PLAIN, document, kept, run_build, write_lines
from datasets import load_dataset
from forked import run_python
from recipe_types import recipe_types

from llmrecipes.config import InputError
from llmrecipes.corpus import clean, phases, shards
from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.documents import Document
from llmrecipes.corpus.duplicates import WINDOW
from llmrecipes.corpus.engine import require_documents, tidy
from llmrecipes.corpus.hashing import minhash, shingles, text_digest, word_hashes
from llmrecipes.corpus.parts import Part, plan_parts
from llmrecipes.corpus.plan import measure, plan_lines, print_plan
from llmrecipes.manifest import corpora_of, read_manifest
from llmrecipes.parsing import parse

ROOT = Path(__file__).parent.parent


def change_words(text, every):
    words = text.split()
    return " ".join("changed" if i % every == every // 2 else word for i, word in enumerate(words))


def test_of_equal_and_nearly_equal_documents_the_first_is_kept(tmp_path):
    texts = [document(i) for i in range(30)]
    near = [change_words(text, 60) for text in texts[:10]]  # 2 words of 120: Jaccard about 0.85
    far = [change_words(text, 8) for text in texts[10:20]]
    named = [*((f"first{i}", text) for i, text in enumerate(texts)), *((f"equal{i}", texts[i]) for i in range(5))]
    named += [*((f"near{i}", text) for i, text in enumerate(near)), *((f"far{i}", text) for i, text in enumerate(far))]
    rows = [{"text": text, "id": name} for name, text in named]
    source = {"path": str(write_lines(tmp_path / "a.jsonl", rows)), "label": "a", "id_column": "id"}
    found = run_build(tmp_path / "out", [source], **PLAIN | {"near_duplicates": 0.7})
    assert kept(tmp_path / "out") == [f"first{i}" for i in range(30)] + [f"far{i}" for i in range(10)]
    dropped = found["total"]["dropped"]
    assert dropped["exact_duplicates"]["equal to an earlier document"][0] == 5
    assert dropped["near_duplicates"]["at least 0.7 of an earlier document"][0] == 10
    assert [s["id"][:4] for s in found["total"]["samples"]["near_duplicates"]["at least 0.7 of an earlier document"]] == [
        "near"
    ] * 3


def test_many_copies_of_one_text_leave_one(tmp_path):
    """More than one compares with in a band: each is compared with the first."""
    text = document(1)
    copies = [f"{text} Copy number {i}." for i in range(3 * WINDOW)]
    run_build(tmp_path / "out", [str(write_lines(tmp_path / "a.jsonl", copies))], **PLAIN | {"near_duplicates": 0.7})
    assert kept(tmp_path / "out") == [f"{tmp_path / 'a.jsonl'}#1"]


def test_jaccard_of_pairs_is_exact(tmp_path):
    """What is dropped is at least as similar as the threshold to a document that is kept; brute force agrees."""
    texts = [document(i) for i in range(20)]
    texts += [change_words(texts[i % 20], 10 + i) for i in range(60)]
    run_build(tmp_path / "out", [str(write_lines(tmp_path / "a.jsonl", texts))], **PLAIN | {"near_duplicates": 0.7})

    def shingles(text):
        words = [word.strip(".").lower() for word in text.split()]
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    sets, expected = [shingles(text) for text in texts], []
    for i, own in enumerate(sets):
        if not any(len(own & sets[j]) / len(own | sets[j]) >= 0.7 for j in expected):
            expected.append(i)
    assert kept(tmp_path / "out") == [f"{tmp_path / 'a.jsonl'}#{i + 1}" for i in expected]


def test_kept_documents_do_not_depend_on_how_shards_are_cut(tmp_path):
    texts = [document(i % 40) for i in range(100)]
    for i in range(10):
        write_lines(tmp_path / f"{i}.jsonl", texts[10 * i : 10 * i + 10])
    reports = {}
    for size in (1, 10_000, 1 << 30):
        run_build(tmp_path / f"out{size}", [f"{tmp_path}/*.jsonl"], shard_bytes=size, **PLAIN | {"near_duplicates": 0.7})
        reports[size] = kept(tmp_path / f"out{size}")
    assert reports[1] == reports[10_000] == reports[1 << 30] and len(reports[1]) == 40
    assert len(list(tmp_path.glob("out1/data/*/*"))) > 1


def test_equal_builds_have_equal_fingerprints_and_others_do_not(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", [document(i) for i in range(5)]))
    first, again = (run_build(tmp_path / name, [path], **PLAIN)["fingerprint"] for name in ("a", "b"))
    other = run_build(tmp_path / "c", [path], **PLAIN | {"exact_duplicates": False})["fingerprint"]
    assert first == again != other


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", [("clean", 1), ("clean", 3), ("index", 0), ("pairs", 5), ("select", 0), ("write", 2)])
def test_an_interrupted_build_goes_on_with_the_rest(tmp_path, monkeypatch, where):
    for i in range(4):
        write_lines(tmp_path / f"{i}.jsonl", [document(i), document(100 + i), document(7)])
    keys = {"shard_bytes": 1} | PLAIN | {"near_duplicates": 0.7}
    whole = run_build(tmp_path / "whole", [f"{tmp_path}/*.jsonl"], **keys)
    phase, count = where
    real, begun = phases.jobs_of, []

    def killed_in(work, name):
        jobs = real(work, name)
        begun.append(name)
        return [*jobs[:count], lambda: (_ for _ in ()).throw(Killed())] if name == phase else jobs

    monkeypatch.setattr("llmrecipes.corpus.engine.jobs_of", killed_in)
    with pytest.raises(Killed):
        run_build(tmp_path / "cut", [f"{tmp_path}/*.jsonl"], **keys)
    monkeypatch.setattr("llmrecipes.corpus.engine.jobs_of", real)
    cleaned = []
    monkeypatch.setattr(
        clean,
        "_clean",
        lambda work, part, *rest, _real=clean._clean: (cleaned.append(part.number), _real(work, part, *rest)),
    )
    assert run_build(tmp_path / "cut", [f"{tmp_path}/*.jsonl"], **keys) == whole
    done = {"clean": count}.get(phase, 4)
    assert cleaned == list(range(done, 4)), "finished shards are not read again"
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


def test_a_full_disk_leaves_finished_shards_and_no_half_one(tmp_path, monkeypatch):
    for i in range(3):
        write_lines(tmp_path / f"{i}.jsonl", [document(i)])
    real = shards.pyarrow.parquet.ParquetWriter.write_table

    def full(self, table, *args, **kwargs):
        if "data" in str(self.where) and "000001" in str(self.where):
            raise OSError(28, "No space left on device")
        return real(self, table, *args, **kwargs)

    monkeypatch.setattr(shards.pyarrow.parquet.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run_build(tmp_path / "out", [f"{tmp_path}/*.jsonl"], shard_bytes=1, **PLAIN)
    assert [file.name for file in tmp_path.glob("out/data/*/*")] == ["000000.parquet"]
    monkeypatch.setattr(shards.pyarrow.parquet.ParquetWriter, "write_table", real)
    run_build(tmp_path / "out", [f"{tmp_path}/*.jsonl"], shard_bytes=1, **PLAIN)
    assert len(kept(tmp_path / "out")) == 3


def test_memory_does_not_grow_with_the_source(tmp_path):
    """Documents that are in memory at once are a batch, however many there are."""
    path = write_lines(tmp_path / "a.jsonl", [document(i, 40) for i in range(3 * clean.BATCH)])
    run_build(tmp_path / "out", [str(path)], **PLAIN)
    file = pyarrow.parquet.ParquetFile(next((tmp_path / "out").glob("data/*/*")))
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= clean.BATCH


@pytest.mark.parametrize("count", [0, 3, 2 * clean.BATCH + 5])
def test_sketches_are_on_disk_before_the_part_ends(tmp_path, count):
    texts = [document(i, 12) for i in range(count)]
    sketches = clean.Sketches(tmp_path, True, None)
    for text in texts:
        sketches.add(text)
    assert (tmp_path / "minhash.npy").stat().st_size >= count // clean.BATCH * clean.BATCH * 512
    sketches.save()
    found = {name: numpy.load(tmp_path / f"{name}.npy") for name in ("digests", "minhash", "ends", "words")}
    assert numpy.array_equal(found["minhash"], minhash([shingles(word_hashes(text), text) for text in texts]))
    assert found["digests"].tobytes() == b"".join(map(text_digest, texts)) and found["words"].tolist() == [12] * count
    assert list(found["ends"]) == [8 * (i + 1) for i in range(count)]


def test_a_source_with_nothing_left_is_named(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", ["too short", "this too"]))
    found = run_build(tmp_path / "out", [path], quality=["gopher"], **PLAIN)
    with pytest.raises(
        InputError, match=r"a\.jsonl: nothing is left of 2 documents of a\.jsonl; most by gopher: fewer than 50 words"
    ):
        require_documents(found)


def test_a_source_that_another_one_holds_whole_is_a_warning_and_a_zero(tmp_path, capsys):
    texts = [document(i, 12) for i in range(4)]
    paths = [str(write_lines(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("a", texts), ("b", texts[:3]))]
    found = run_build(tmp_path / "out", paths, **{**PLAIN, "exact_duplicates": True})
    require_documents(found)
    assert [about["kept"][0] for about in found["sources"].values()] == [4, 0]
    assert "b.jsonl: nothing is left of 3 documents of b.jsonl; 3 are duplicates of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": [{"path": "x", "stepz": {}}]}, r"sources\[0\]: unknown key `stepz`, did you mean `steps`"),
        ({"sources": [{"path": "x", "steps": {"qualty": []}}]}, "`steps` has no `qualty`, did you mean `quality`"),
        ({"sources": [{"path": "x", "steps": {"quality": ["goper"]}}]}, "goper"),
        ({"sources": ["a/x", "b/x"]}, "two are called 'x'"),
        ({"sources": [{"path": "./x.jsonl", "revision": "main"}]}, "`revision` is for data sets of the Hub"),
        ({"sources": [{"path": "my:rows", "revision": "main"}]}, "`revision` has no effect on my:rows, a function"),
        ({"sources": ["a/x"], "workers": 2}, "workers: needs `executor"),
        ({"sources": ["a/x"], "dry_run": True}, "dry_run: belongs to `executor: slurm`"),
        ({"sources": ["a/x"], "executor": "slurm", "slurm": {"partion": "x"}}, "`partion`, did you mean `partition`"),
        ({"sources": [{"path": ".", "data_files": [{"train": "x"}]}]}, "`data_files` holds {'train': 'x'}; give file names"),
        ({"sources": ["a/x"], "plan": "much"}, "plan: 'much' is not a size"),
    ],
)
def test_a_wrong_key_is_one_line(keys, message):
    with pytest.raises(InputError, match=message):
        CorpusArguments(**keys)


def test_words_of_a_document_are_counted_before_and_after(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", ["one two three", "four five", "four five"]))
    found = run_build(tmp_path / "out", [path], **PLAIN)["total"]
    assert found["read"][:2] == [3, 7] and found["kept"][:2] == [2, 5]
    assert found["dropped"] == {"exact_duplicates": {"equal to an earlier document": [1, 2]}}
    assert found["lengths"] == {"2": 1, "4": 1}


def test_every_row_read_is_kept_or_dropped_for_a_reason(tmp_path):
    rows = [document(1), document(1), " ", {"body": "x"}, {"text": 5}, document(2)]
    source = {"path": str(write_lines(tmp_path / "a.jsonl", rows)), "drop_bad_rows": True}
    found = run_build(tmp_path / "out", [source], **PLAIN)["total"]
    dropped = [count for reasons in found["dropped"].values() for count, _ in reasons.values()]
    assert found["read"][0] == 6 == found["kept"][0] + sum(dropped) and sum(dropped) == 4


def test_files_of_others_below_data_are_no_shards(tmp_path):
    rows, stray = write_lines(tmp_path / "a.jsonl", [document(1)]), tmp_path / "out" / "data" / "a" / "000009.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"somebody's")
    argv = [
        "--sources",
        f"[{{path: {rows}, label: a}}]",
        "--output_dir",
        str(tmp_path / "out"),
        "--repair",
        "false",
        "--force",
    ]
    with pytest.raises(InputError, match="out/data: was not written by a build"):
        runpy.run_path(str(ROOT / "recipes" / "corpus.py"))["main"](*parse(*recipe_types("corpus"), argv=argv))
    assert stray.exists()


def test_nothing_in_the_report_is_markup(tmp_path):
    evil = "<script>alert(1)</script> " * 3
    path = str(write_lines(tmp_path / "a.jsonl", [evil + document(1), evil + document(1)]))
    run_build(tmp_path / "out", [{"path": path, "license": "<b>"}], **PLAIN)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "<b>" not in page.replace("<p><b>", "") and "&lt;script&gt;alert(1)" in page
    assert json.loads((tmp_path / "out" / "report.json").read_text())["total"]["samples"]["kept"]


def test_a_folder_half_written_by_another_process_is_no_part(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", [document(1)]))
    (tmp_path / "out" / "work" / "cleaned" / f"000000.{os.getpid()}.tmp").mkdir(parents=True)
    run_build(tmp_path / "out", [path], **PLAIN)
    assert numpy.load(tmp_path / "out" / "work" / "cleaned" / "000000" / "words.npy").tolist() == [120]


def test_the_recipe_writes_a_folder_whose_report_is_known_to_what_is_made_of_it(tmp_path):
    path, out = write_lines(tmp_path / "a.jsonl", [document(i) for i in range(40)]), tmp_path / "corpus"
    options = ["--repair", "false", "--sources", f"[{{path: {path}, label: a}}]", "--output_dir", out]
    first = run_python("recipes/corpus.py", *options)
    assert first.returncode == 0, first.stderr
    assert "already finished" in run_python("recipes/corpus.py", *options, "--retries", "9").stdout
    report = json.loads((out / "report.json").read_text())
    card = (out / "README.md").read_text()
    assert "documents are other people's" in card and "a.jsonl, label: a}]' --output_dir" in card, "as a shell takes it"
    more = run_python(
        "recipes/corpus.py", *[option.replace("}]", "}, {path: other.jsonl}]") for option in map(str, options)]
    )
    assert "another run (`sources[1]` was not given, is {'path': 'other.jsonl'})" in more.stderr
    assert not (out / "work").exists() and load_dataset(str(out), "a", split="train").num_rows == 40
    made = ["--datasets", f"[{{path: {out / 'data' / 'a'}}}]", "--vocab_size", "300", "--test_split_size", "0.1"]
    made += ["--output_dir", tmp_path / "tokenizer"]
    second = run_python("recipes/tokenizer.py", *made)
    assert second.returncode == 0, second.stderr
    assert list(read_manifest(tmp_path / "tokenizer")["corpora"].values()) == [report["fingerprint"]]
    assert corpora_of([str(tmp_path / "tokenizer")]) == {str(out): report["fingerprint"]}, "handed on by what was made of it"
    assert report["fingerprint"] in (tmp_path / "tokenizer" / "README.md").read_text()
    tokens = ["--datasets", f"[{{path: {out / 'data' / 'a'}}}]", "--tokens_dir", tmp_path / "tokens"]
    third = run_python("-m", "llmrecipes.tokens", *tokens, "--tokenizer_name_or_path", tmp_path / "tokenizer")
    assert third.returncode == 0, third.stderr
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    assert corpora_of([str(folder)]) == {str(out): report["fingerprint"]}, "and by its tokens"
    (shard,) = out.glob("data/a/*")
    whole, made[-1] = shard.read_bytes(), tmp_path / "other"
    for change, how in (
        (lambda: shard.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]), "was changed"),
        (lambda: shard.rename(out / "data" / "a" / "7.parquet"), "is gone"),
    ):
        change()
        refused = run_python("recipes/tokenizer.py", *made)
        assert refused.returncode == 2 and f"{shard}: {how} after the corpus was built" in refused.stderr


def test_a_plan_does_not_wait_for_a_hub_that_is_out_of_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("llmrecipes.corpus.plan.plan_parts", lambda args: asked.append(args.sources) or plan_parts(args))
    asked, local = [], str(write_lines(tmp_path / "a.jsonl", [document(i, 12) for i in range(3)]))
    (tmp_path / "scratch").mkdir()
    rates = measure(CorpusArguments(sources=["ann/texts", local], plan="1GB"), tmp_path / "scratch")
    assert rates["documents"] == 3 and [[s.path for s in sources] for sources in asked] == [[local]]
    said = "unknown      ann/texts is out of reach: http://127.0.0.1:9 gives no answer within 10 seconds; all rates are"
    assert said in capsys.readouterr().out
    with pytest.raises(InputError, match="plan: ann/texts: out of reach: .* so nothing can be measured; add a local sample"):
        measure(CorpusArguments(sources=["ann/texts"], plan="1GB"), tmp_path / "scratch")


def test_a_plan_does_not_wait_for_a_hub_that_answers_and_sends_no_rows(tmp_path, monkeypatch):
    stalls, given = threading.Event(), []

    def documents(source, part, limit):
        given.append(source.streaming)
        yield Document("a document", "1")
        stalls.wait()

    monkeypatch.setattr("llmrecipes.corpus.plan._answers", lambda url: True)
    monkeypatch.setattr("llmrecipes.corpus.plan.plan_parts", lambda args: [Part(0, 0, num_shards=1)])
    monkeypatch.setattr("llmrecipes.corpus.plan.read_documents", documents)
    monkeypatch.setattr("llmrecipes.corpus.plan.STALLED", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(InputError, match="plan: ann/texts: .* answers, but sent no row within 0.2 seconds; try again later"):
        measure(CorpusArguments(sources=["ann/texts"], plan="1GB"), tmp_path / "scratch")
    assert given == [True], "only the first rows are read, not the whole set"
    stalls.set()


def test_a_plan_says_what_a_size_takes_and_writes_nothing(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [document(i) for i in range(1500)])
    args = CorpusArguments(sources=[str(path)], plan="15TB", **PLAIN | {"near_duplicates": 0.7})
    (tmp_path / "scratch").mkdir()
    print_plan(args, tmp_path / "scratch")
    said = capsys.readouterr().out
    assert "measured on 1,000 documents" in said and "15.0 TB" in said and "234,375 shards" in said and "core-hours" in said
    rates = {"bytes": 1000.0, "kept": 0.5, "seconds": 0.01, "sketch_bytes": 500.0, "documents": 1000}
    by_hand = {"to read": "15.0 TB, about 15,000,000,000 documents", "to write": "3.0 TB (zstd) of 7.5 TB",
               "on the disk": "18.0 TB besides", "work": "41,667 core-hours", "memory": "1.1 TB where"}  # fmt: skip
    lines = list(plan_lines(args, rates))
    assert all(any(line.startswith(key) and value in line for line in lines) for key, value in by_hand.items())
    assert "--executor slurm" in said and "--executor ray" in said and "more than a machine has" in said
    assert "more than" not in "".join(
        plan_lines(CorpusArguments(sources=["a/b"], plan="1GB"), measure(args, tmp_path / "scratch"))
    )


@pytest.mark.parametrize("size", ["0", "1.2.3GB", "1e400", "15 parsecs"])
def test_a_plan_for_no_size_is_one_line(size):
    with pytest.raises(InputError, match="plan: .* is not a size"):
        CorpusArguments(plan=size)


def test_a_shard_that_a_task_was_killed_at_does_not_stay(tmp_path):
    run_build(tmp_path, [str(write_lines(tmp_path / "a.jsonl", [document(1)]))], **PLAIN)
    (shard,) = tmp_path.glob("data/*/*")
    shard.with_name(f"{shard.name}.4158.tmp").write_bytes(b"PAR1 torn")
    tidy(phases.load_work(tmp_path / "work"))
    assert list(tmp_path.glob("data/*/*")) == [shard] and not (tmp_path / "work").exists()
