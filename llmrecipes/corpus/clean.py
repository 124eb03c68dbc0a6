"""First phase, one part at a time: rows to cleaned documents, with the sketches needed to compare them with all others."""

from array import array
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

from llmrecipes.corpus.contamination import Items, item_words, load_about, load_items
from llmrecipes.corpus.counts import Counts
from llmrecipes.corpus.documents import read_documents
from llmrecipes.corpus.hashing import PERMUTATIONS, different, minhash, shingles, text_digest, word_hashes, words_of
from llmrecipes.corpus.parts import Part
from llmrecipes.corpus.steps import build_steps
from llmrecipes.corpus.work import EVALUATION, Work, whole_folder
from llmrecipes.data.hub_streams import within_reach
from llmrecipes.durable import write_json

SCHEMA = pyarrow.schema([("text", pyarrow.large_string()), ("source", pyarrow.string()), ("id", pyarrow.string())])
BATCH, BATCH_BYTES = 512, 8 << 20  # most documents, and bytes of them, in memory at once


class Sketches:
    """What a part's documents are compared by: `digests` (16 bytes each), `minhash` [n, 128], `shingles` (uint32, sorted
    within a document) with their `ends`, `words` (counts), `hits` (pairs of document and n-gram of an evaluation set).

    A source without files is a single part, however large: the long ones, MinHash and shingles, go to disk as they come."""

    def __init__(self, folder: Path, near: bool, items: Items | None):
        self.folder, self.near, self.items = folder, near, items
        self.digests, self.words, self.sizes, self.hits, self.sets = bytearray(), array("q"), array("q"), [], []
        self.shingles, self.minhash = (folder / "shingles.u32").open("wb"), (folder / "minhash.npy").open("wb")
        self._write_header(0)

    def add(self, text: str) -> None:
        words = word_hashes(text)
        if self.items is not None:
            found = self.items.hits(item_words(text) if "_" in text else words)
            self.hits += [(len(self.words), number) for number in found.tolist()]
        self.digests += text_digest(text)
        self.words.append(len(words))
        self.sets.append(shingles(words, text) if self.near else words[:0])
        if len(self.sets) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self.near:
            self.minhash.write(minhash(self.sets).tobytes())
        for own in self.sets:
            small = different((own >> numpy.uint64(32)).astype(numpy.uint32))
            self.sizes.append(len(small))
            self.shingles.write(small.tobytes())
        self.sets = []

    def _write_header(self, count: int) -> None:
        """The header of minhash.npy, which is as long for any `count` (numpy leaves room for the digits)."""
        self.minhash.seek(0)
        about = {"descr": "<u4", "fortran_order": False, "shape": (count, PERMUTATIONS)}
        numpy.lib.format.write_array_header_1_0(self.minhash, about)

    def save(self) -> None:
        self._flush()
        self._write_header(len(self.words) if self.near else 0)
        self.shingles.close()
        self.minhash.close()
        save = lambda name, values: numpy.save(self.folder / f"{name}.npy", values)
        save("digests", numpy.frombuffer(self.digests, numpy.uint64).reshape(-1, 2))
        save("ends", numpy.cumsum(self.sizes, dtype=numpy.int64))
        save("words", numpy.array(self.words, numpy.int64))
        save("hits", numpy.array(self.hits, numpy.int64).reshape(-1, 2))


def clean_part(work: Work, number: int) -> None:
    """Processes a part, unless that is done."""
    folder = work.cleaned(number)
    if folder.exists():
        return
    if number == EVALUATION:
        return _sketch_items(work, folder)
    part = work.parts[number]
    items = load_items(work.root) if work.args.decontaminate else None

    def attempt():
        with whole_folder(folder) as temporary:
            _clean(work, part, items, temporary)

    if part.files:
        attempt()
    else:
        within_reach(work.source(part).path, work.args.retries, attempt)


def _sketch_items(work: Work, folder: Path) -> None:
    with whole_folder(folder) as temporary:
        sketches = Sketches(temporary, work.args.near_duplicates is not None, None)
        for text in load_about(work.root)["texts"]:
            sketches.add(text)
        sketches.save()


def _clean(work: Work, part: Part, items: Items | None, folder: Path) -> None:
    source, changed = work.source(part), Counter()
    counts, steps = Counts(work.args.report_samples), build_steps(work.args.steps_of(source), changed)
    sketches = Sketches(folder, work.args.near_duplicates is not None, items)
    batch, size = [], 0
    with pyarrow.parquet.ParquetWriter(folder / "documents.parquet", SCHEMA, compression="zstd") as writer:
        for document in read_documents(source, part, work.args.max_document_bytes):
            if document.problem:
                counts.read[0] += 1
                counts.drop("read", document.problem, 0, document.id, document.problem)
                continue
            text = document.text
            words = words_of(text)
            for i, value in enumerate((1, len(words), len(text.encode()))):
                counts.read[i] += value
            for name, step in steps:
                new, reason = step(text)
                if reason:
                    counts.drop(name, reason, len(words), document.id, text)
                    break
                text = new
            else:
                if not text.strip():
                    counts.drop("read", "is empty", 0, document.id, "is empty")
                    continue
                sketches.add(text)
                batch.append({"text": text, "source": source.label, "id": document.id})
                size += len(text)
            if len(batch) == BATCH or size > BATCH_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(batch, SCHEMA))
                batch, size = [], 0
        if batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, SCHEMA))
    sketches.save()
    counts.changed = dict(changed)
    write_json(folder / "counts.json", asdict(counts))
