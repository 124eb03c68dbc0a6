"""Part of benchmarks/data.py about near-duplicates: ours and datatrove's MinHash on the same documents, from one Parquet
file to the Parquet files of those kept, words split by the same function."""

import random
import resource
import tempfile
import time
from pathlib import Path

import numpy
import pyarrow.parquet
import xxhash
from data import alone
from data_documents import made_documents, write_documents

from llmrecipes.corpus import duplicates
from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.engine import build
from llmrecipes.corpus.hashing import WORD, words_of
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.work import Work

CHANGED = (0.002, 0.005, 0.01, 0.02, 0.05)  # shares of words changed in planted near-duplicates


def near_duplicates(count: int = 100_000) -> dict:
    """CPU seconds, peak memory, and recall and precision by an independent Jaccard similarity, of both sides."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "in" / "a.parquet"
        alone(_write, file, count)
        for name, side in (("ours", _ours), ("datatrove", _datatrove)):
            (seconds, peak), dropped = alone(_measured, side, file)
            found |= {f"{name}: CPU s": seconds, f"{name}: peak GB": peak}
            found |= {f"{name}: {key}": value for key, value in _quality(count, dropped).items()}
    found["datatrove's CPU s / ours"] = found["datatrove: CPU s"] / found["ours: CPU s"]
    return {"documents": count + len(range(0, count, 100))} | found


def _write(file: Path, count: int) -> None:
    documents = made_documents(count)
    file.parent.mkdir()
    write_documents(file, documents + [text for _, text in planted(documents)])


def _measured(side, file: Path) -> tuple[tuple[float, float], dict[int, int]]:
    before = time.process_time()
    dropped = side(file)
    return (time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6), dropped


def _ours(file: Path) -> dict[int, int]:
    """Dropped document -> the one because of which it was."""
    args = CorpusArguments(sources=[{"path": str(file), "id_column": "id"}], repair=False, scrub=[])
    work = Work(file.parent.parent / "out" / "work", args, plan_parts(args))
    work.save()
    build(work)
    codes, because = (numpy.load(work.root / "selected" / f"{name}.npy") for name in ("codes", "because"))
    return {i: int(because[i]) for i in numpy.flatnonzero(codes == duplicates.NEAR).tolist()}


def _datatrove(file: Path) -> dict[int, int]:
    """The same: another member of a dropped document's cluster, -1 if it has none."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        word_tokenize, sent_tokenize, span_tokenize = staticmethod(words_of), None, None

    home = file.parent.parent / "datatrove"
    signatures, buckets, clusters, kept = (f"{home}/{name}" for name in ("signatures", "buckets", "clusters", "kept"))
    sign = MinhashDedupSignature(signatures, language=Words())
    sign._hash_func = _xxhash64
    stages = [
        (1, [ParquetReader(str(file.parent)), sign]),
        (14, [MinhashDedupBuckets(signatures, buckets)]),  # a task for each of its 14 buckets
        (1, [MinhashDedupCluster(buckets, clusters, save_cluster_id=True)]),
        (1, [ParquetReader(str(file.parent)), MinhashDedupFilter(clusters), ParquetWriter(kept)]),
    ]
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{home}/logs/{number}").run()
    left = {int(i) for i in pyarrow.parquet.read_table(kept, columns=["id"])["id"].to_pylist()}
    pairs = numpy.fromfile(Path(clusters) / "000000.clusters", "<u4").reshape(-1, 2).tolist()
    members: dict[int, list[int]] = {}
    for document, cluster in pairs:
        members.setdefault(cluster, []).append(document)
    total = pyarrow.parquet.read_metadata(file).num_rows
    of = {document: members[cluster] for document, cluster in pairs}
    return {i: next((j for j in of.get(i, []) if j != i), -1) for i in range(total) if i not in left}


def _xxhash64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())  # datatrove's own gives text, which xxhash 4 does not take


def planted(documents: list[str]) -> list[tuple[int, str]]:
    """(index of the original, text with some words changed) for every hundredth document."""
    rng, found = random.Random(2), []
    for index in range(0, len(documents), 100):
        share = CHANGED[index // 100 % len(CHANGED)]
        words = documents[index].split(" ")
        words = [f"{word}x" if rng.random() < share else word for word in words]
        words[rng.randrange(len(words))] += "y"
        found.append((index, " ".join(words)))
    return found


def jaccard(a: str, b: str) -> float:
    """Jaccard similarity of the sets of runs of five words, as text: independent of the code being measured."""
    sets = []
    for text in (a, b):
        words = WORD.findall(text.lower())
        sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _quality(count: int, dropped: dict[int, int]) -> dict:
    """Of pairs of an original and its copy, one must be gone."""
    documents = made_documents(count)
    copies = planted(documents)
    texts = documents + [text for _, text in copies]
    similar = [jaccard(documents[index], text) for index, text in copies]
    gone = [count + i in dropped or index in dropped for i, (index, _) in enumerate(copies)]
    recall = lambda least: [found for value, found in zip(similar, gone, strict=True) if value >= least]
    high, wanted = recall(0.8), recall(0.7)
    right = sum(other >= 0 and jaccard(texts[i], texts[other]) >= 0.7 for i, other in dropped.items())
    return {
        "planted with Jaccard >= 0.8": len(high),
        "recall of them": sum(high) / len(high),
        "recall at Jaccard >= 0.7": sum(wanted) / len(wanted),
        "dropped": len(dropped),
        "precision": right / max(1, len(dropped)),
    }
