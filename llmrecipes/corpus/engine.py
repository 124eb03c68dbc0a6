"""Who runs the tasks of a build: this process, or datatrove's executors."""

import shutil
import sys

from llmrecipes.config import InputError
from llmrecipes.corpus.phases import PHASES, jobs_of
from llmrecipes.corpus.work import Work

DUPLICATES = ("exact_duplicates", "near_duplicates")  # the steps that drop them


def build(work: Work) -> bool:
    """Runs all phases; False if they were only submitted to a cluster, or written down for one.

    Raises:
        InputError: a source cannot be read, a task was killed repeatedly, a package is missing.
    """
    if work.args.executor is None:
        for phase in PHASES:
            _run_here(work, phase)
        return True
    from llmrecipes.corpus.executors import run_with

    return run_with(work)


def _run_here(work: Work, phase: str) -> None:
    jobs = jobs_of(work, phase)
    for number, job in enumerate(jobs, start=1):
        job()
        if phase in ("clean", "write") and (number == len(jobs) or number % 10 == 0):
            print(f"{phase}: {number} of {len(jobs)} shards", flush=True)


def require_documents(content: dict) -> None:
    """InputError if nothing is left of a source; a warning if only because other sources hold the same documents."""
    for label, about in content["sources"].items():
        if not about["kept"][0]:
            twice = sum(n[0] for step in DUPLICATES for n in about["dropped"].get(step, {}).values())
            if twice and content["total"]["kept"][0]:
                print(
                    f"warning: {about['path']}: nothing is left of {about['read'][0]:,} documents of {label}; {twice:,} are "
                    "duplicates of documents of other sources, so there is nothing of it in data/",
                    file=sys.stderr,
                )
                continue
            reasons = {f"{step}: {reason}": n[0] for step, own in about["dropped"].items() for reason, n in own.items()}
            why = f"; most by {max(reasons, key=reasons.get)}" if reasons else ", it holds none"
            left = f"nothing is left of {about['read'][0]:,} documents of {label}{why}"
            raise InputError(f"{about['path']}: {left}; leave it out, or change its `steps` (report.html has samples)")


def tidy(work: Work) -> None:
    """Removes files that only the build itself needs."""
    (work.root / "job.json").unlink(missing_ok=True)  # first: if killed here, the next start begins anew
    for torn in work.root.parent.glob("data/*/*.tmp"):  # left by tasks killed while writing a shard
        torn.unlink()
    shutil.rmtree(work.root)
