"""SIGTERM (Slurm, spot machines, `timeout`), Ctrl-C and a closed terminal or pipe end a run cleanly: progress is saved, and
the exit code tells the signal. One of several processes that is left alone by another ends with a line."""

import contextlib
import ctypes
import functools
import io
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

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


@contextlib.contextmanager
def held_signals():
    """Signals that ask this process to end wait meanwhile, also in processes that it starts (see `outlive_signals`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(then=None, *args) -> None:
    """For a worker of a data loader, best started under `held_signals`, which calls `then(*args)` afterwards. It ends when
    its parent ends it or is gone, but not by a signal that the whole process group gets, as from a terminal or Slurm: the
    parent needs rows until it has saved."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    else:
        parent = os.getppid()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

        def wait():
            while signal.sigwaitinfo(SIGNALS).si_pid != parent:
                pass
            os._exit(0)

        threading.Thread(target=wait, daemon=True).start()
    if then:
        then(*args)


def keep_workers(trainer) -> None:
    """Has the workers of a Trainer's data loaders outlive the signals at which it saves."""
    get_dataloader = trainer._get_dataloader

    def get(*args, **kwargs):
        loader = get_dataloader(*args, **kwargs)
        own = getattr(loader, "base_dataloader", loader)  # inside accelerate's
        own._get_iterator = held_signals()(own._get_iterator)
        own.worker_init_fn = functools.partial(outlive_signals, own.worker_init_fn)
        return loader

    trainer._get_dataloader = get


class OutputError(OSError):
    """A file that standard output or error goes to takes no more; `filename` says which."""


class Log(io.FileIO):
    """Standard output or error that is a file. Once that takes no more, an OutputError says so, and what would still be
    printed is dropped: Python would fail again with it at its end."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            name = "standard output" if self.fileno() == 1 else "standard error"
            with contextlib.suppress(OSError):  # a system without /proc
                name += f", {os.readlink(f'/proc/self/fd/{self.fileno()}')}"
            _drop_what_goes_to(os.fstat(self.fileno()))
            raise OutputError(error.errno, error.strerror, name) from error


def _drop_what_goes_to(file: os.stat_result) -> None:
    unheard = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.path.samestat(os.fstat(stream), file):
            os.dup2(unheard, stream)


class Pipe(io.FileIO):
    """Standard output or error that is a pipe. Once its reader is gone (`| head`, a `tee` that was killed), the process is
    told so as by a closed terminal, and ends where nothing would be lost; under nohup it goes on, unheard."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _drop_what_goes_to(os.fstat(self.fileno()))
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                sys.exit(128 + signal.SIGPIPE)
            if not received:
                os.kill(os.getpid(), signal.SIGHUP)
            return len(data)


def guard_outputs() -> None:
    """Gives a process that was started without standard streams (`2>&-`) /dev/null in their place: the next file that is
    opened would have their number, and what libraries print would be written into it. Pipes become a `Pipe`, files a
    `Log`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            kind = os.fstat(number).st_mode
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # opened as `number`, the lowest that is free
            setattr(sys, name, open(number, "w" if number else "r", closefd=False, encoding="utf-8"))
            continue
        stream = getattr(sys, name)
        if number and not os.isatty(number) and stream is getattr(sys, f"__{name}__"):
            raw = (Pipe if stat.S_ISFIFO(kind) else Log)(number, "w", closefd=False)
            how = {how: getattr(stream, how) for how in ("encoding", "errors", "line_buffering", "write_through")}
            buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # python -u has no buffer
            setattr(sys, name, io.TextIOWrapper(buffer, **how))


def say_at_once(text: str) -> None:
    """Prints a line from a signal's handler: where the signal came in the middle of a `print`, another one raises."""
    try:
        print(text, flush=True)
    except RuntimeError:  # "reentrant call"
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


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


def is_left_alone(error: Exception) -> bool:
    """Whether a collective failed because another process has ended, be it by a refusal of its own or by a bug."""
    signs = ("closed by peer", "reset by peer", "broken pipe", "remote process exited", "remote worker crashing")
    is_of_backend = "gloo" in str(error) or type(error).__module__.startswith("torch.distributed")
    is_of_backend |= type(error).__name__ in ("DistBackendError", "DistNetworkError")
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and is_of_backend and any(sign in str(error).lower() for sign in signs)


def tell_launcher(text: str, after: int = 0) -> None:
    """Leaves `text` where `torchrun`, and so `accelerate launch`, looks for what its report says of a failed process. The
    report calls the earliest one the cause: `after` are seconds to add."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": text, "timestamp": int(time.time()) + after}), encoding="utf-8")
