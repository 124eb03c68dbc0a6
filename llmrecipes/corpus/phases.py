"""The phases of a build, each a list of tasks that can run in any order, on any machine with the folder, and repeatedly."""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.clean import clean_part
from llmrecipes.corpus.duplicates import find_pairs, index_parts, select
from llmrecipes.corpus.hashing import BANDS
from llmrecipes.corpus.shards import write_shard
from llmrecipes.corpus.work import Work, load_work
from llmrecipes.durable import disk_is_full, write_json, write_text

PHASES = ("clean", "index", "pairs", "select", "write")


def jobs_of(work: Work, phase: str) -> list[Callable[[], None]]:
    """The jobs of a phase; each does nothing if it is already done."""
    if phase == "clean":
        return [partial(clean_part, work, number) for number in work.numbers]
    if phase == "index":
        return [partial(index_parts, work)]
    if phase == "pairs":
        return [partial(find_pairs, work, band) for band in range(BANDS)] if work.args.near_duplicates is not None else []
    if phase == "select":
        return [partial(select, work)]
    return [partial(write_shard, work, part) for part in work.parts]


def is_done(work: Work, phase: str) -> bool:
    """Whether all results of a phase exist."""
    if phase == "clean":
        return all(work.cleaned(number).exists() for number in work.numbers)
    if phase == "index":
        return (work.root / "index").exists()
    if phase == "pairs":
        return work.args.near_duplicates is None or all(work.pairs(band).exists() for band in range(BANDS))
    if phase == "select":
        return (work.root / "selected").exists()
    return all(work.written(part).exists() for part in work.parts)


def num_tasks(work: Work, phase: str) -> int:
    """The number of tasks that share a phase's jobs; never more than there are jobs."""
    return max(1, min(work.args.num_tasks or 1 << 30, len(jobs_of(work, phase))))


def run_task(root: str | Path, phase: str, rank: int, tasks: int) -> None:
    """Runs every `tasks`-th job of a phase, from `rank` on.

    Raises:
        InputError: there is no such build, or a source cannot be read.
    """
    work = load_work(Path(root))
    if work is None:
        raise InputError(f"{root}: there is no build of a corpus; start recipes/corpus.py")
    for job in jobs_of(work, phase)[rank::tasks]:
        job()


def datatrove_task(root: str, phase: str, data, rank: int = 0, world_size: int = 1) -> None:
    """`run_task` in the form that datatrove calls, with a note of its process for as long as it runs.

    data: the output of the step before; there is none.
    """
    name = f"{phase}-{rank}"
    note = Path(root) / "running" / f"{name}.json"
    note.parent.mkdir(exist_ok=True)
    write_json(note, {"pid": os.getpid(), "host": os.uname().nodename})
    ended = threading.Event()
    threading.Thread(target=_beat, args=(note, ended), daemon=True).start()
    try:
        run_task(root, phase, rank, world_size)
    except Exception as error:
        if isinstance(error, InputError) or disk_is_full(error, root):
            full = f"{root}: the disk is full; free some space and give the same command again, it continues with the rest"
            (Path(root) / "failed").mkdir(exist_ok=True)
            write_text(Path(root) / "failed" / f"{name}.txt", str(error) if isinstance(error, InputError) else full)
        raise
    finally:
        ended.set()
        note.unlink(missing_ok=True)


def _beat(note: Path, ended: threading.Event) -> None:
    """Signals every few seconds that the task is alive, for watchers on other machines."""
    while not ended.wait(10):
        with contextlib.suppress(OSError):
            os.utime(note)
