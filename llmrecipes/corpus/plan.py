"""`--plan 15TB`: what a corpus of that size would take, from rates measured on its first documents."""

import math
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from llmrecipes.config import InputError, generator_of
from llmrecipes.corpus.arguments import CorpusArguments, CorpusSource, is_local
from llmrecipes.corpus.clean import Sketches
from llmrecipes.corpus.documents import read_documents
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.steps import build_steps

DOCUMENTS = 1000
SECONDS = 10  # for which the Hub is waited for; a plan is looked at while one waits
STALLED = 60  # seconds without a row from a Hub that does answer; the libraries themselves try on for many minutes
BYTES_PER_TOKEN = 4.3  # of a vocabulary of 50,000 on English web text; used only for the number of tokens
INDEX_BYTES = 72  # memory per document while searching for duplicates, as measured: keys, order, flags
ZSTD = 2.5  # how much smaller texts are on disk
MOST_MEMORY = 256 << 30


def print_plan(args: CorpusArguments, folder: Path) -> None:
    """Reads up to 1,000 documents of the sources, in turn, and prints bytes, core-hours, shards, tasks, memory, commands.

    folder: for temporary output; removed by the caller.
    """
    rates = measure(args, folder)
    for line in plan_lines(args, rates):
        print(line)


def measure(args: CorpusArguments, folder: Path) -> dict[str, float]:
    """Means per document over the first documents: `bytes`, `kept` (share of bytes after the steps), `seconds` to read and
    clean, `sketch_bytes` on disk."""
    args = replace(args, decontaminate=[], sources=_in_reach(args.sources))
    chains = [build_steps(args.steps_of(source), _Uncounted()) for source in args.sources]
    sketches = Sketches(folder, args.near_duplicates is not None, None)
    size = kept = count = 0
    started = time.process_time()
    for chain, text in _first_documents(args, chains):
        count, size = count + 1, size + len(text.encode())
        for _, step in chain:
            text, reason = step(text)
            if reason:
                break
        else:
            kept += len(text.encode())
            sketches.add(text)
    sketches.save()
    seconds = time.process_time() - started
    if not count:
        raise InputError("plan: the sources hold no document to measure")
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    means = {"bytes": size / count, "seconds": seconds / count, "sketch_bytes": on_disk / count}
    return means | {"documents": count, "kept": kept / size}


def _in_reach(sources: list[CorpusSource]) -> list[CorpusSource]:
    """The sources that can be measured: without those on the Hub, with a line for each, if it does not answer in SECONDS.
    The others on the Hub are streamed, as only their first rows are read.

    Raises:
        InputError: none is left.
    """
    remote = [source for source in sources if _is_remote(source)]
    if not remote or constants.HF_HUB_OFFLINE:
        return sources
    if _answers(constants.ENDPOINT):
        return [replace(source, streaming=True) if source in remote else source for source in sources]
    away = f"out of reach: {constants.ENDPOINT} gives no answer within {SECONDS} seconds"
    left = [source for source in sources if source not in remote]
    if not left:
        names = ", ".join(source.path for source in remote)
        raise InputError(f"plan: {names}: {away}, so nothing can be measured; add a local sample to `sources`")
    for source in remote:
        print(f"unknown      {source.path} is {away}; all rates are those of the other sources", flush=True)
    return left


def _is_remote(source: CorpusSource) -> bool:
    path = source.path
    return not (is_local(path) or path == "stdlib" or path.startswith("pypi:") or generator_of(path))


def _answers(url: str) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=SECONDS):  # nosec B310
            return True
    except HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False


class _Uncounted(dict):
    def __missing__(self, key):
        return 0


def _first_documents(args: CorpusArguments, chains: list) -> Iterator[tuple[list, str]]:
    """DOCUMENTS documents, taken from the sources in turn."""
    away = ", ".join(source.path for source in args.sources if _is_remote(source))
    firsts = {part.source: part for part in reversed(_in_time(away, lambda: plan_parts(args)))}
    # A stream's first shard may be a few rows: all are one here.
    whole = lambda part: replace(part, num_shards=1) if part.num_shards else part
    read = lambda i, part: read_documents(args.sources[i], whole(part), args.max_document_bytes)
    open_ones = [(chains[i], args.sources[i], read(i, part)) for i, part in sorted(firsts.items())]
    left = DOCUMENTS
    while open_ones and left:
        for chain, source, documents in list(open_ones):
            usable = (document for document in documents if not document.problem)
            found = _in_time(source.path if _is_remote(source) else "", lambda rows=usable: next(rows, None))
            if found is None:
                open_ones.remove((chain, source, documents))
            elif left:
                left -= 1
                yield chain, found.text


def _in_time(away: str, work: Callable):
    """The result of `work()`; InputError if it reads from the sources `away` on the Hub and is not there in STALLED seconds.
    The thread that waits on is left behind, and ends with the process."""
    if not away:
        return work()
    results = SimpleQueue()

    def put_result():
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=put_result, daemon=True).start()
    try:
        found, error = results.get(timeout=STALLED)
    except Empty:
        raise InputError(
            f"plan: {away}: {constants.ENDPOINT} answers, but sent no row within {STALLED} seconds; try again later, or "
            "measure a local sample in `sources`"
        ) from None
    if error:
        raise error
    return found


def bytes_of(size: float) -> str:
    """1.5 TB"""
    power = next((n for n in (5, 4, 3, 2, 1) if size >= 1000**n), 0)
    return f"{size / 1000**power:,.1f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def plan_lines(args: CorpusArguments, rates: dict[str, float]) -> Iterator[str]:
    """The lines of the plan."""
    total = args.plan_bytes
    documents = total / rates["bytes"]
    kept = total * rates["kept"]
    shards = max(1, round(total / args.shard_bytes))
    tasks = min(shards, args.num_tasks or max(1, shards // 100))
    index = documents * INDEX_BYTES
    hours = documents * rates["seconds"] / 3600
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each, rate = rates["bytes"], 1 / rates["seconds"]
    yield f"measured on {rates['documents']:,.0f} documents: {each:,.0f} bytes each, {rate:,.0f} per core and second"
    yield f"to read      {bytes_of(total)}, about {documents:,.0f} documents"
    yield (
        f"to write     {bytes_of(kept / ZSTD)} (zstd) of {bytes_of(kept)} before duplicates go, about "
        f"{kept / BYTES_PER_TOKEN:,.0f} tokens"
    )
    meanwhile = bytes_of(kept / ZSTD + 2 * documents * rates["sketch_bytes"])
    yield f"on the disk  {meanwhile} besides, while it is built: cleaned documents, and their sketches by shard and joined"
    yield f"work         {hours:,.0f} core-hours of cleaning; {hours / 1000:,.1f} hours on 1,000 busy cores"
    yield (
        f"cut into     {shards:,} shards of about {bytes_of(args.shard_bytes)}, {tasks:,} tasks, "
        f"{hours / tasks * 60:,.0f} minutes each"
    )
    yield f"memory       {bytes_of(peak)} a worker that cleans, {bytes_of(index)} where duplicates are looked for"
    if index > MOST_MEMORY:
        builds = math.ceil(index / MOST_MEMORY)
        yield (
            f"             that is more than a machine has: make {builds} builds (by crawl, say, as FineWeb does), each "
            "without its own duplicates, or leave near_duplicates out"
        )
    yield from _commands(args, tasks)


def _commands(args: CorpusArguments, tasks: int) -> Iterator[str]:
    call = "python recipes/corpus.py --config FILE.yaml"
    many = f"--workers 1000 --num_tasks {tasks}"
    yield f"Slurm        {call} --executor slurm {many} --slurm '{{partition: cpu, time: \"24:00:00\"}}'"
    yield f"Ray          RAY_ADDRESS=auto {call} --executor ray {many}"
