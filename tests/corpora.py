"""Small corpora for tests: documents made of words drawn by a seed, and a build in this process."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

from llmrecipes.corpus.arguments import CorpusArguments, to_source
from llmrecipes.corpus.contamination import save_items
from llmrecipes.corpus.documents import read_documents
from llmrecipes.corpus.engine import build
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.report import write_report
from llmrecipes.corpus.work import Work

WORDS = (
    "river stone garden window morning letter market road winter bread teacher music engine paper forest island captain "
    "silver number question summer shadow village bridge corner pocket mirror doctor kitchen border"
).split()
PLAIN = {"repair": False, "scrub": [], "near_duplicates": None}  # no step that needs an extra


def document(seed: int, words: int = 120) -> str:
    """Sentences of ten words; documents of different seeds share no five words in a row but by chance."""
    rng = random.Random(seed)
    drawn = [rng.choice(WORDS) + (str(rng.randrange(100)) if rng.random() < 0.3 else "") for _ in range(words)]
    return " ".join(
        " ".join(drawn[i : i + 10]).capitalize() + ("." if i % 50 else ".\n") for i in range(0, words, 10)
    ).strip()


def write_lines(path: Path, texts: list) -> Path:
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in texts))
    return path


def run_build(folder: Path, sources: list, sets: dict | None = None, **keys) -> dict:
    """The report of a build in `folder`; sets: evaluation sets, as `evaluation_texts` would find them."""
    args = CorpusArguments(sources=sources, decontaminate=["given"] if sets else [], **keys)
    work = Work(folder / "work", args, plan_parts(args))
    work.save()
    if sets:
        save_items(work.root, sets, args)
    assert build(work)
    return write_report(work, "test")


def kept(folder: Path) -> list[str]:
    """Ids of all documents in the order of the shards."""
    files = sorted(folder.glob("data/*/*.parquet"), key=lambda file: file.name)
    return [name for file in files for name in pyarrow.parquet.read_table(file)["id"].to_pylist()]


def texts_of(path, limit=10_000, **source):
    source = to_source({"path": str(path), **source}, "sources[0]")
    parts = plan_parts(CorpusArguments(sources=[source]))
    return [document.text for part in parts for document in read_documents(source, part, limit)]
