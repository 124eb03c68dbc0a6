"""Who may write in a run's folder: the process that holds its lock, until it ends."""

import atexit
import fcntl
import os
import socket
import sys
from pathlib import Path

from llmrecipes.config import InputError

LOCK = ".lock"


def find_holder(output_dir: Path) -> str:
    """Which other process is writing in the folder, as "process 7 on host"; "" if none is."""
    try:
        handle = os.open(output_dir / LOCK, os.O_RDWR)
    except OSError:
        return ""
    try:
        if output_dir.resolve() not in _held:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return os.read(handle, 200).decode(errors="replace").strip() or "another process"
    except OSError:  # a file system without locks
        return ""
    finally:
        os.close(handle)


_held: dict[Path, int] = {}  # folder -> file descriptor of its lock, held as long as this process lives


def _leave_to_parent() -> None:
    """In a forked process, such as a worker of a data loader: it may outlive a killed parent by seconds, in which the same
    command must not find the folder locked."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_leave_to_parent)


def hold_folder(output_dir: Path) -> None:
    """Locks the folder for this process until it ends or calls `release_folder`; InputError if another process holds it."""
    folder = output_dir.resolve()
    while folder not in _held:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"{output_dir}: {find_holder(output_dir)} is writing there; wait for it, or stop it") from None
        except OSError:  # a file system without locks, such as some of clusters and buckets
            os.close(handle)
            why = "this file system has no locks, so a second run that writes there would not be noticed"
            print(f"warning: {output_dir}: {why}; start none", file=sys.stderr, flush=True)
            return
        try:  # the previous holder may have removed the file while this process was opening it
            current = os.stat(folder / LOCK).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            current = False
        if not current:
            os.close(handle)
            continue
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        _held[folder] = handle
        atexit.register(_release_at_exit, folder, os.getpid())


def _release_at_exit(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not a forked one
        release_folder(folder)


def release_folder(output_dir: Path) -> None:
    """Undoes `hold_folder`; nothing if this process does not hold the folder."""
    folder = output_dir.resolve()
    if folder in _held:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(_held.pop(folder))
