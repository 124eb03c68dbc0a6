"""datatrove's executors (Penedo et al., github.com/huggingface/datatrove; local, Slurm) or Ray run the tasks of a build.

`local` and `ray` run in a child process that is watched here: if one of its workers is killed (by the kernel, for its
memory), datatrove's pool waits for it forever. Each task leaves a note of its process while it runs; a note whose process
is gone means a killed task, and the child is restarted, up to `retries` times. Finished work is not repeated.
Ray runs the tasks itself: datatrove's executor for it starts an actor and a pool for each task, which takes longer than a
task of a small corpus, and waits forever for an actor that dies before its first answer.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.extras import need
from llmrecipes.corpus.phases import PHASES, datatrove_task, is_done, num_tasks
from llmrecipes.corpus.work import Work, load_work
from llmrecipes.durable import read_json, write_json
from llmrecipes.manifest import ROOT
from llmrecipes.signals import die_with_parent

SILENT_S = 120  # a task on another machine without a sign of life for this long counts as killed
PATIENCE_S = 10  # for a child to end when asked
QUIET_S = 3  # without any live task, after one was killed
OBJECT_STORE = 80 << 20  # bytes; Ray's smallest is 75 MiB


def run_with(work: Work) -> bool:
    """Runs the build; False if it was only submitted to Slurm, or written down for it.

    Raises:
        InputError: a source cannot be read, a task was killed repeatedly, a package is missing.
    """
    if work.args.executor == "ray":
        need("ray", "executor: ray", extra="ray")
    else:
        need("datatrove.executor", f"executor: {work.args.executor}")
    if all(is_done(work, phase) for phase in PHASES):
        return True
    if work.args.executor == "slurm":
        return _submit(work)
    for attempt in range(work.args.retries + 1):
        for folder in ("running", "failed"):
            shutil.rmtree(work.root / folder, ignore_errors=True)
            (work.root / folder).mkdir()
        lost = _watch(work)
        if failed := sorted((work.root / "failed").iterdir()):
            raise InputError(failed[0].read_text(encoding="utf-8"))
        if not lost and all(is_done(work, phase) for phase in PHASES):
            return True
        what = f"task {lost} was killed" if lost else "the executor ended before its tasks"
        if attempt < work.args.retries:
            print(f"{what}; attempt {attempt + 2} of {work.args.retries + 1} continues with the rest", flush=True)
    raise InputError(
        f"{what} in each of {work.args.retries + 1} tries, most likely out of memory; fewer `workers` or smaller "
        f"`shard_bytes` need less. Finished shards are kept; {work.root / 'executor.log'} has datatrove's own words"
    )


def _watch(work: Work) -> str:
    """Runs the child to its end; returns the name of a task that was killed, if any."""
    command = [sys.executable, "-m", "llmrecipes.corpus.executors", str(work.root)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (work.root / "executor.log").open("ab") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"PYTHONPATH": path}
        )
        try:
            heard = time.monotonic()
            while child.poll() is None:
                lost, living = _tasks(work.root)
                if living or not lost or work.args.executor == "ray":  # Ray notices by itself, and the child ends
                    heard = time.monotonic()
                elif time.monotonic() - heard > QUIET_S:  # the remaining tasks, which the pool still runs, have ended
                    return lost
                time.sleep(0.2)
            return _tasks(work.root)[0]
        finally:
            _end(child)


def _tasks(root: Path) -> tuple[str, int]:
    """(a task with a note but without its process, or nothing; number of live tasks)."""
    lost, living = "", 0
    for file in (root / "running").glob("*.json"):
        note = read_json(file)
        if not note:  # it has just ended
            continue
        if note["host"] == os.uname().nodename:
            is_gone = not _is_alive(note["pid"])
        else:
            is_gone = time.time() - file.stat().st_mtime > SILENT_S
        if is_gone and file.exists():
            lost = lost or file.stem
        else:
            living += 1
    return lost, living


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):  # a zombie counts as dead too
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _end(child: subprocess.Popen) -> None:
    """The child and all processes started by it."""
    for signum, patience in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, None)):
        try:
            os.killpg(child.pid, signum)
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            child.wait()


def _logs(work: Work, phase: str) -> str:
    """datatrove's folder of a phase, with its completion marks, which are valid only for one number of tasks."""
    return str(work.root / "datatrove" / f"{phase}-{num_tasks(work, phase)}")


def _pipeline(work: Work, phase: str) -> list:
    return [partial(datatrove_task, str(work.root.absolute()), phase)]


def _end_whole_group() -> None:
    """Makes SIGTERM end all processes that this one, the leader of their group, has started: datatrove's manager would
    otherwise wait for ever for a parent that is gone, and its workers end their tasks."""
    leader = os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(leader, signal.SIGKILL) if os.getpid() == leader else os._exit(143))


def run_child(root: str) -> None:
    """The child's work: all phases, one after the other."""
    _end_whole_group()
    die_with_parent(os.getppid())
    work = load_work(Path(root))
    run = _start_ray(work) if work.args.executor == "ray" else _run_locally
    for phase in PHASES:
        if is_done(work, phase):
            continue
        if num_tasks(work, phase) == 1:  # needs no worker process
            datatrove_task(root, phase, None)
        else:
            run(work, phase)


def _run_locally(work: Work, phase: str) -> None:
    from datatrove.executor import LocalPipelineExecutor

    tasks = num_tasks(work, phase)
    # This process has no threads and little memory, so workers can be forked and need not import everything again.
    LocalPipelineExecutor(
        _pipeline(work, phase),
        tasks=tasks,
        workers=min(work.args.workers, tasks),
        logging_dir=_logs(work, phase),
        start_method="fork" if sys.platform == "linux" else "spawn",
    ).run()


def _start_ray(work: Work) -> Callable[[Work, str], None]:
    """Connects to the cluster at RAY_ADDRESS, or starts one on this machine; returns what runs a phase on it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends them to its makers unless told otherwise
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets workers wait for all else on a busy machine
    import ray

    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:  # tasks exchange files, not objects
        ray.init("local", num_cpus=work.args.workers, include_dashboard=False, object_store_memory=OBJECT_STORE)
    return _run_on_ray


def _run_on_ray(work: Work, phase: str) -> None:
    """Runs all tasks of a phase, `workers` at a time, also if one of them is killed; then raises that one's error."""
    import ray

    task = ray.remote(max_retries=0)(datatrove_task)  # the parent counts the tries
    tasks = num_tasks(work, phase)
    ranks, running, lost = iter(range(tasks)), [], None
    while True:
        for rank in itertools.islice(ranks, work.args.workers - len(running)):
            running.append(task.remote(str(work.root.absolute()), phase, None, rank, tasks))
        if not running:
            break
        (done,), running = ray.wait(running)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError:  # the task's own
            raise
        except ray.exceptions.RayError as error:
            lost = error
    if lost:
        raise lost


def _submit(work: Work) -> bool:
    """Submits all phases to Slurm, each waiting for the one before it; with `dry_run` only writes the scripts."""
    from datatrove.executor import slurm

    options = dict(work.args.slurm or {})
    for key in ("partition", "time"):
        if key not in options:
            raise InputError(f"slurm: `{key}` is missing; give `slurm: {{partition: ..., time: '20:00:00'}}`")
    jobs = read_json(work.root / "slurm.json").get("jobs") or []
    if jobs and not work.args.dry_run and _are_queued(jobs):
        print(f"jobs {', '.join(jobs)} are still with Slurm; when they have ended, the same command writes the report")
        return False
    if not work.args.dry_run and (failed := sorted((work.root / "failed").glob("*.txt"))):
        said = failed[0].read_text(encoding="utf-8")
        shutil.rmtree(work.root / "failed")  # said once: the next time, the rest is handed over again
        raise InputError(f"{said} (said by a job; give the same command again to hand over the rest)")
    options.setdefault("env_command", f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}:$PYTHONPATH")
    last = None
    for phase in PHASES:
        if not is_done(work, phase):
            last = slurm.SlurmPipelineExecutor(
                _pipeline(work, phase),
                num_tasks(work, phase),
                workers=work.args.workers,
                job_name=f"corpus-{phase}",
                logging_dir=_logs(work, phase),
                depends=last,
                **options,
            )
    scripts: list[str] = []
    real = slurm.launch_slurm_job
    slurm.launch_slurm_job = partial(_launch, work, scripts, real)
    try:
        last.run()
    finally:
        slurm.launch_slurm_job = real
    if work.args.dry_run:
        print(f"what sbatch would be given is in {work.root / 'slurm'}: {len(scripts)} scripts, in the order of their names")
    else:
        write_json(work.root / "slurm.json", {"jobs": scripts})
        print(f"jobs {', '.join(scripts)} are with Slurm; when they have ended, the same command writes the report")
    return False


def _launch(work: Work, launched: list[str], real, script: str, retriever, *args) -> str:
    """Replaces datatrove's own, which has no dry run: writes the script, or submits it, and returns the job's id. A job that
    waits for one that failed is removed, or it would stay with Slurm for ever."""
    args = (*args, "--kill-on-invalid-dep=yes")
    if not work.args.dry_run:
        try:
            launched.append(str(real(script, retriever, *args)))
        except FileNotFoundError as error:
            what = f"executor: slurm: there is no `{error.filename}` on this machine"
            raise InputError(f"{what}; start this where jobs are submitted, or have scripts written (--dry_run)") from None
        return launched[-1]
    folder = work.root / "slurm"
    folder.mkdir(exist_ok=True)
    launched.append(f"{{job {len(launched) + 1}}}")
    command = " ".join(["# sbatch", *args])
    (folder / f"{len(launched):02d}.slurm").write_text(script.replace("\n", f"\n{command}\n", 1), encoding="utf-8")
    return launched[-1]


def _are_queued(jobs: list[str]) -> bool:
    try:
        asked = subprocess.run(["squeue", "-h", "-j", ",".join(jobs)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"executor: slurm: {error}; is Slurm on this machine?") from None
    return bool(asked.stdout.strip())


if __name__ == "__main__":
    run_child(sys.argv[1])
