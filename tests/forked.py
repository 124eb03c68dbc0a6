"""Python programs for tests, without the ten seconds of imports that each of them costs.

`run_python("recipes/rank.py", "--config", ...)` does what `subprocess.run([sys.executable, ...])` does, in a process of its
own with its own arguments, environment, working directory and output, but forked from a server that has the libraries
imported. With `children=True` so are the Python programs that it starts by subprocess.Popen itself: the stages of a
pipeline, the ranks of a launch. REAL_PROCESSES=1 in the environment starts real interpreters instead.
"""

import atexit
import functools
import gc
import importlib.metadata
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
LIBRARIES = ["torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval.tasks", "gradio"]
LIBRARIES += ["matplotlib.pyplot", "scipy.stats", "torch.distributed.fsdp"]
LIBRARIES += [
    "llmrecipes.pipeline",
    "llmrecipes.report",
    "llmrecipes.sft",
    "llmrecipes.dpo",
    "llmrecipes.reward_models.trainer",
    "llmrecipes.ppo.trainer",
]
LIBRARIES += ["llmrecipes.evaluation.watch", "llmrecipes.ranking.annotators"]


def run_python(
    *argv, env: dict | None = None, cwd=ROOT, timeout: float = 300, children: bool = False
) -> subprocess.CompletedProcess:
    """`python argv...` (a script, `-m module` or `-c code`, and its arguments) with `env` on top of the environment;
    what is None there is left out of it."""
    argv, env = [str(word) for word in argv], {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    env = {name: value for name, value in (os.environ | env).items() if value is not None}
    if os.environ.get("REAL_PROCESSES"):
        command = [sys.executable, *argv]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _start(argv, env, cwd, outputs, children, os.getpgrp())
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(argv, timeout)
        printed = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in outputs]
        return subprocess.CompletedProcess(argv, process.exitcode, *printed)


def start_python(*argv, output: Path, env: dict | None = None, cwd=ROOT) -> subprocess.Popen:
    """As run_python with children=True, but not waited for: prints to the file `output`, in a process group of its own."""
    command, env = [sys.executable, "-u", *map(str, argv)], os.environ | (env or {})
    if os.environ.get("REAL_PROCESSES"):
        with output.open("w") as file:
            return subprocess.Popen(command, cwd=cwd, env=env, stdout=file, stderr=file, start_new_session=True)
    return ForkedPopen(command, env=env, cwd=cwd, start_new_session=True, outputs=[output, output])


class ForkedPopen:
    """What launchers need of subprocess.Popen, for a Python program that prints where its parent does."""

    outputs: list[str] = []
    real = subprocess.Popen

    def __new__(cls, args, **kwargs):
        python = isinstance(args, (list, tuple)) and args[0] == sys.executable
        return super().__new__(cls) if python else cls.real(args, **kwargs)

    def __init__(self, args, env=None, cwd=None, start_new_session=False, outputs=None, **kwargs):
        self.args, self.returncode = args, None
        words = [str(word) for word in args[1:] if word != "-u"]
        group = 0 if start_new_session else os.getpgrp()
        self.process = _start(words, env or os.environ, cwd or os.getcwd(), outputs or self.outputs, True, group)
        self.pid = self.process.pid

    def poll(self):
        self.returncode = self.process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, input=None, timeout=None):
        self.wait(timeout)
        return None, None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.wait()


def _start(argv: list[str], environment, cwd, outputs, children: bool, group: int) -> multiprocessing.Process:
    """`group` is the process group that it joins, 0 for one of its own."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # DeepSpeed takes the machine's accelerator when it is imported; with a GPU there, launches on CPUs ask for another.
    context.set_forkserver_preload(LIBRARIES + ["deepspeed"] * (not torch.cuda.is_available()))
    arguments = argv, dict(environment), str(cwd), [str(file) for file in outputs], children, group
    process = context.Process(target=_run, args=arguments, daemon=False)
    process.start()
    return process


def _run(argv: list[str], environment: dict[str, str], cwd: str, outputs: list[str], children: bool, group: int) -> None:
    gc.freeze()  # the libraries: a collection would walk through all of them, and copy their pages
    importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)  # see conftest.py
    os.setpgid(0, group)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, descriptor in zip(outputs, (1, 2), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    if children:
        ForkedPopen.outputs, subprocess.Popen = outputs, ForkedPopen
        ranks = sys.modules.get("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler")
        if ranks:  # it has taken Popen out of its module
            ranks.Popen = ForkedPopen
        # Python's own would start another server, with all imports, for the children of a forked process.
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    code = 0
    try:
        _execute(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else print(end.code, file=sys.stderr) or 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # multiprocessing leaves without them; trackers send their last rows there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _execute(argv: list[str]) -> None:
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).absolute().parent))
        runpy.run_path(argv[0], run_name="__main__")
