"""SIGTERM (Slurm, spot machines, `timeout`), Ctrl-C and a closed terminal end a run cleanly: progress is saved, and the
exit code tells the signal."""

import ctypes
import os
import signal
import stat
import sys
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
IN_A_CHAIN = "LLMRECIPES_IN_A_CHAIN"  # environment variable of the processes that recipes/pipeline.py starts
INSISTS_AFTER = 2.0  # seconds: launchers and terminals repeat a signal at once; a later one is the user's
received: list[int] = []  # signals that asked this process to end
_last = 0.0
_owner = None  # the process with the handlers, not a forked data loader


class Interrupted(KeyboardInterrupt):
    """Signal `signum` asked the run to end; `launch` exits with 128 + signum (SIGTERM 143, Ctrl-C 130)."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def handle_signals(handler=None) -> None:
    """Makes SIGTERM, SIGINT and SIGHUP (except under nohup) call `handler(signum)`, which may raise; the default raises
    Interrupted immediately."""
    global _owner
    if threading.current_thread() is not threading.main_thread():
        return  # Python delivers signals only to the main thread
    _owner = os.getpid()

    def handle(signum, frame):
        if os.getpid() != _owner:
            os._exit(128 + signum)
        global _last
        before, _last = _last, time.monotonic()
        if received and _last - before < INSISTS_AFTER:
            return
        received.append(signum)
        if signum == signal.SIGHUP:
            _leave_terminal()
        (handler or raise_interrupted)(signum)

    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handle)


def _leave_terminal() -> None:
    """Printing to a closed terminal would raise, and end the run before it has saved."""
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def raise_interrupted(signum: int) -> None:
    """Raises Interrupted for `signum`, as if this process had received it."""
    if not received:  # another process of this launch received it
        received.append(signum)
    raise Interrupted(signum)


def follow_launcher() -> None:
    """Makes a process started by a launcher or the pipeline end when its parent ends, for whatever reason."""
    if {"TORCHELASTIC_RUN_ID", IN_A_CHAIN} & os.environ.keys():
        die_with_parent(os.getppid())


def die_with_parent(parent: int) -> None:
    """Makes the kernel send this process SIGTERM when `parent`, the process that started it, is gone."""
    if sys.platform != "linux":
        return
    PR_SET_PDEATHSIG = 1  # sys/prctl.h
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        os.kill(os.getpid(), signal.SIGTERM)
