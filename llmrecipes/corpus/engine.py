"""Who runs the tasks of a build: this process, or datatrove's executors."""

import shutil

from llmrecipes.config import InputError
from llmrecipes.corpus.phases import PHASES, jobs_of
from llmrecipes.corpus.work import Work


def build(work: Work) -> bool:
    """Runs all phases; False where they were only handed to a cluster, or written down for one.

    Raises:
        InputError: a source cannot be read, a task was killed again and again, a package is missing.
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
    """InputError where a source has nothing left."""
    for label, about in content["sources"].items():
        if not about["kept"][0]:
            reasons = {f"{step}: {reason}": n[0] for step, own in about["dropped"].items() for reason, n in own.items()}
            why = f"; most by {max(reasons, key=reasons.get)}" if reasons else ", it holds none"
            raise InputError(f"{about['path']}: nothing is left of {about['read'][0]:,} documents of {label}{why}")


def tidy(work: Work) -> None:
    """Removes what only the build itself needs."""
    (work.root / "job.json").unlink(missing_ok=True)  # first: killed here, the next start does not go on with half of it
    for torn in work.root.parent.glob("data/*/*.tmp"):  # shards that a task was killed at
        torn.unlink()
    shutil.rmtree(work.root)
