"""SIGTERM and Ctrl-C leave in order with exit codes of their own; a process ends with the one that has started it."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmrecipes.config import RunArguments
from llmrecipes.parsing import launch
from llmrecipes.resume import CheckpointKeeper
from llmrecipes.signals import SIGNALS, Interrupted, handle_signals, raise_interrupted

ROOT = Path(__file__).parent.parent
CHILD = """
import sys, time
from pathlib import Path
from llmrecipes.signals import Interrupted, handle_signals
handle_signals()
folder = Path(sys.argv[1])
try:
    (folder / "ready").touch()
    time.sleep(60)
except Interrupted as error:
    (folder / "left").write_text(str(error.signum))
"""
PARENT = """
import functools, os, subprocess, sys, time
from llmrecipes.signals import die_with_parent
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], preexec_fn=functools.partial(die_with_parent, os.getpid()))
time.sleep(60)
"""


# Python is taken down after the functions of atexit; a thread of gloo's that comes then aborts the process.
RANK = """
import atexit, os, sys
from torch import distributed as dist
from llmrecipes.config import InputError
from llmrecipes.parsing import launch

class Abort:
    def __del__(self, abort=os.abort):
        abort()

def main():
    global last
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    last = Abort()
    atexit.register(print, "all is written")
    if sys.argv[1:]:
        raise {"InputError": InputError, "ValueError": ValueError}[sys.argv.pop()]("wrong")

launch(main, argv=[])
"""


@pytest.mark.parametrize(
    ("error", "code"), [("", 0), ("InputError", 2), pytest.param("ValueError", 1, marks=pytest.mark.long)]
)
def test_a_process_of_a_launch_leaves_with_its_code_when_all_is_written(error, code):
    command = [sys.executable, "-c", RANK, *filter(None, [error])]
    environment = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "all is written\n"), done.stderr
    assert ("ValueError: wrong" in done.stderr) == (code == 1) and ("error: wrong" in done.stderr) == (code == 2)


LOGGED = """
import sys
from llmrecipes.parsing import launch

def main():
    print("a line" * 10, flush="flush" in sys.argv)
    print("at the end", file=sys.stderr)

launch(main, argv=[])
"""


@pytest.mark.parametrize("how", ["flush", pytest.param("at the end", marks=pytest.mark.long)])
def test_a_full_disk_behind_a_log_is_told_from_one_behind_output_dir(how):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", LOGGED, how]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and ("at the end\n" in done.stderr) == (how == "at the end")
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: standard output, /dev/full: No space left on device; free some space, or print to")
        assert done.stderr.count("\n") == 1 + (how == "at the end")
        assert subprocess.run(command, env=environment, stdout=full, stderr=full).returncode == 2


def test_a_process_that_ends_for_another_ones_signal_is_interrupted_too(monkeypatch):
    monkeypatch.setattr("llmrecipes.signals.received", heard := [])
    for signum in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Interrupted):
            raise_interrupted(signum)
    assert heard == [signal.SIGTERM]


def test_a_signal_in_the_middle_of_a_printed_line_saves_as_any_other_does(tmp_path, monkeypatch):
    file = (tmp_path / "log").open("wb", buffering=0)
    keeper = SimpleNamespace(signum=0, run=SimpleNamespace(stage="sft"), may_leave=False, leaves_at_once=True)
    keeper.trainer = SimpleNamespace(is_world_process_zero=lambda: True)

    class Interrupting(io.RawIOBase):
        writable, fileno = (lambda self: True), (lambda self: file.fileno())

        def write(self, data):
            if not keeper.signum:
                CheckpointKeeper.on_signal(keeper, signal.SIGTERM)
            return file.write(data)

    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(Interrupting())))
    print("step 1", flush=True)
    assert (tmp_path / "log").read_text().splitlines() == [
        "sft: SIGTERM received; saving a checkpoint, then exiting",
        "step 1",
    ]


def until(condition) -> bool:
    deadline = time.time() + 60
    while not condition() and time.time() < deadline:
        time.sleep(0.02)
    return condition()


def written(file: Path) -> bool:
    return file.exists() and bool(file.read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_chain_that_is_killed_takes_its_stage_along(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)], cwd=Path(__file__).parent.parent)
    assert until((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    assert until(lambda: written(tmp_path / "left"))
    assert (tmp_path / "left").read_text() == str(signal.SIGTERM.value)


@dataclass
class Arguments:
    output_dir: str = ""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_each_signal_has_an_exit_code_of_its_own(tmp_path, capsys, monkeypatch, signum, code):
    monkeypatch.setattr("llmrecipes.signals.received", [])
    before = {s: signal.getsignal(s) for s in SIGNALS}

    def main(run, args):
        handle_signals()
        os.kill(os.getpid(), signum)
        time.sleep(10)

    try:
        with pytest.raises(SystemExit) as caught:
            launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    assert caught.value.code == code and "continues from the last checkpoint" in capsys.readouterr().err


def test_a_signal_sent_twice_at_once_counts_once(monkeypatch):
    before = {s: signal.getsignal(s) for s in SIGNALS}
    heard = []
    monkeypatch.setattr("llmrecipes.signals.received", [])
    handle_signals(heard.append)
    try:
        for _ in range(2):  # a terminal and the pipeline, say
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    assert heard == [signal.SIGINT]
    assert issubclass(Interrupted, KeyboardInterrupt)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_ends_the_run_in_order_but_under_nohup(tmp_path, nohup):
    def main(run, args):
        handle_signals()
        (tmp_path / "runs").touch()
        try:
            for i in range(40):
                time.sleep(0.05)
                if not nohup:
                    print("step", i, flush=True)
            (tmp_path / "finished").touch()
        finally:
            print("saving", flush=True)
            (tmp_path / "saved").touch()

    pid, terminal = pty.fork()
    if pid == 0:
        code = 1
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        if nohup:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            launch(main, RunArguments, Arguments, argv=["--output_dir", str(tmp_path / "o")])
            code = 0
        except SystemExit as left:
            code = left.code
        finally:
            os._exit(code)
    while not (tmp_path / "runs").exists():
        time.sleep(0.05)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if nohup else 129)
    assert (tmp_path / "saved").exists() and (tmp_path / "finished").exists() == nohup


# A stage that prints until it is told to stop, or 100 lines.
PRINTING = """
import os, signal, sys, time
from pathlib import Path
from llmrecipes.parsing import launch
from llmrecipes.signals import handle_signals

folder = Path(sys.argv.pop())

def main():
    told = []
    if sys.argv[1:]:
        handle_signals(told.append)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        told.append(0)
    file = (folder / "model").open("w", buffering=1)
    os.write(2, b"a library's warning\\n")
    for line in range(100):
        print("a line", flush=True)
        print("a line", file=sys.stderr, flush=True)
        time.sleep(0.002)
    file.write(f"weights {told}")

launch(main, argv=[])
"""


@pytest.mark.parametrize(
    ("shell", "code", "model"),
    [
        ("{} told | head -1; exit ${{PIPESTATUS[0]}}", 0, "weights [1]"),  # a stage that saves before it leaves
        pytest.param("{} told 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", 0, "weights [1]", marks=pytest.mark.long),
        pytest.param("{} | head -1; exit ${{PIPESTATUS[0]}}", 141, "", marks=pytest.mark.long),
        ("trap '' HUP; {} | head -1; exit ${{PIPESTATUS[0]}}", 0, "weights [0]"),  # as nohup starts it
        ("{} >&- 2>&-", 0, "weights []"),
        pytest.param("{} <&- >&- 2>&-", 0, "weights []", marks=pytest.mark.long),
    ],
)
def test_outputs_that_are_closed_end_a_run_in_order_and_never_stand_in_its_files(tmp_path, shell, code, model):
    (tmp_path / "stage.py").write_text(PRINTING.replace("sys.argv.pop()", repr(str(tmp_path))))
    command = shell.format(f"{sys.executable} {tmp_path / 'stage.py'}")
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where these tests run under nohup
    )
    assert (done.returncode, (tmp_path / "model").read_text()) == (code, model), done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
