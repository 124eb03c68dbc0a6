"""Third phase, one part at a time: the documents kept, as a Parquet shard, and the counts of the part."""

from dataclasses import asdict

import numpy
import pyarrow
import pyarrow.parquet

from llmrecipes.corpus.clean import SCHEMA
from llmrecipes.corpus.contamination import load_about, shared_passage
from llmrecipes.corpus.counts import Counts
from llmrecipes.corpus.duplicates import CONTAMINATED, CONTAMINATED_NEAR, KEPT, reason_of
from llmrecipes.corpus.parts import Part
from llmrecipes.corpus.work import Work, whole_file
from llmrecipes.durable import read_json, write_json


def write_shard(work: Work, part: Part) -> None:
    """Writes a part's shard, unless it exists; a part of which no document is kept has no shard."""
    if work.written(part).exists():
        return
    selected, about = work.root / "selected", load_about(work.root)
    start = int(numpy.load(work.root / "index" / "starts.npy", mmap_mode="r")[work.numbers.index(part.number)])
    words = numpy.load(work.cleaned(part.number) / "words.npy")
    codes, because = (
        numpy.load(selected / f"{name}.npy", mmap_mode="r")[start : start + len(words)] for name in ("codes", "because")
    )
    counts = Counts(work.args.report_samples)
    counts.add(read_json(work.cleaned(part.number) / "counts.json"))
    at, kept = 0, int((codes == KEPT).sum())
    with whole_file(work.shard(part)) as temporary:
        with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            file = pyarrow.parquet.ParquetFile(work.cleaned(part.number) / "documents.parquet")
            for table in (pyarrow.Table.from_batches([batch]) for batch in file.iter_batches(512)):
                own = codes[at : at + len(table)]
                for i, row in enumerate(table.to_pylist()):
                    if own[i] == KEPT:
                        counts.keep(int(words[at + i]), len(row["text"].encode()))
                        counts.show("kept", work.source(part).label, row["id"], row["text"])
                    else:
                        step, reason = reason_of(work, int(own[i]), int(because[at + i]), about)
                        text = row["text"]
                        if own[i] in (CONTAMINATED, CONTAMINATED_NEAR):
                            text = shared_passage(text, about["texts"][because[at + i]], work.args.contamination_ngram)
                        counts.drop(step, reason, int(words[at + i]), row["id"], text)
                at += len(table)
                if (own == KEPT).any():
                    writer.write_table(table.filter(pyarrow.array(own == KEPT)))
    if not kept:
        work.shard(part).unlink()
    work.written(part).parent.mkdir(parents=True, exist_ok=True)
    write_json(work.written(part), asdict(counts))
