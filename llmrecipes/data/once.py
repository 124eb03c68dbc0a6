"""Files in a cache that one process writes while all others that ask for them wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from llmrecipes.config import InputError
from llmrecipes.durable import disk_is_full


@contextmanager
def written_once(file: Path, thing: Path, key: str) -> Iterator[bool]:
    """Whether `file` is still to be written, by this process only; other processes wait here until it exists.

    thing: what is locked, `file` itself or the folder of which it is the last one written. key: what to set so that it is
    written elsewhere.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    if file.exists():
        yield False
        return
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{thing}.lock"):
            yield not file.exists()
    except OSError as error:
        if disk_is_full(error, folder):
            raise InputError(
                f"{folder}: the disk is full; the finished shards are kept: free some space, or move the "
                f"folder and set {key}, and give the same command again"
            ) from None
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); set {key}") from None
