"""Files that others depend on: written under a temporary name, flushed, then renamed; digests reveal torn ones."""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

from llmrecipes.formats import read_growing
from llmrecipes.signals import OutputError


def read_json(path: str | Path) -> dict:
    """The JSON object in `path`; empty if there is no readable one."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict) -> None:
    """Writes atomically: after a kill, a power cut or on a full disk, `path` holds its old contents or all of `value`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes atomically, as `write_json` does."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def cut_back(path: Path, step: int) -> list[dict]:
    """Rows up to `step` of a JSON Lines file that training appends to, when training continues from there. Later rows are
    removed from the file, as they will be written again; damaged ones too, with a message."""
    whole = [row for row in read_growing(path) if isinstance(row.get("step"), int)]
    rows = [row for row in whole if row["step"] <= step]
    if path.exists():
        if (damaged := path.read_bytes().count(b"\n") - len(whole)) > 0:
            print(f"{path}: removed {damaged} damaged rows", flush=True)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def fsync_file(path: Path) -> None:
    """Flushes the contents of `path` to disk, so that they survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Flushes the names in `folder` to disk, so that they survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # not supported by some network file systems
        pass
    finally:
        os.close(handle)


TORCH_CANNOT_WRITE = "unexpected pos|file write failed|iostream error"
LARGE = 1 << 28  # bytes (256 MiB) from which a file's digest is cached, valid while size and mtime stay the same


def cache_folder() -> Path:
    """The cache for downloads, token shards and digests of large files: $LLMRECIPES_CACHE, else ~/.cache/llmrecipes."""
    return Path(os.path.expanduser(os.environ.get("LLMRECIPES_CACHE") or "~/.cache/llmrecipes"))


def file_digest(path: Path) -> str:
    """XXH3 (128 bits) of a file's contents: detects accidental changes, not attacks, at the speed of memory."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return _read_digest(path)
    name = xxhash.xxh3_128_hexdigest(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode())
    noted = cache_folder() / "digests" / f"{name}.json"
    if found := read_json(noted).get("digest"):
        return found
    found = _read_digest(path)
    with contextlib.suppress(OSError):  # the cache is not writable
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_json(noted, {"file": str(path.resolve()), "digest": found})
    return found


def _read_digest(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def trouble_with_files(error: Exception, output_dir: str) -> str:
    """What a run that wrote to `output_dir` should do if the disk is full or a file may not be written; "" for all else."""
    if output := next((cause for cause in _causes(error) if isinstance(cause, OutputError)), None):
        return (
            f"{output.filename}: {output.strerror}; free some space, or print to another place, and give the same command "
            "again, it continues from the last complete checkpoint"
        )
    if file_is_too_large(error):
        return (
            f"{output_dir}: a file is larger than the file system or `ulimit -f` allows; raise that limit, or move the "
            "folder to another disk, and give the same command again, it continues from the last complete checkpoint"
        )
    if denied := not_permitted(error, output_dir):
        return f"{denied}; give this user the right to it, or name another"
    if not disk_is_full(error, output_dir):
        return ""
    if free_bytes(output_dir) >= 1 << 20 > free_bytes(cache_folder()):
        return (
            f"{cache_folder()}: the disk is full; free some space, or set the environment variable LLMRECIPES_CACHE "
            "to a folder with room, and give the same command again"
        )
    return (
        f"{output_dir}: the disk is full; free some space and give the same command again, it continues from "
        "the last complete checkpoint"
    )


def disk_is_full(error: BaseException, folder: str | Path) -> bool:
    """Whether `error`, or a cause of it, is due to a full disk or quota. Libraries report that in many ways: as OSError, as
    SafetensorError or Exception with the system's message, sqlite in its own words. torch's message does not mention it, so
    for that the free space of `folder` is checked."""
    for cause in _causes(error):
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(r"No space left|[Dd]isk quota exceeded|disk is full|os error (28|122)\b", str(cause)):
            return True
        if re.search(rf"{TORCH_CANNOT_WRITE}|write", str(cause)) and free_bytes(folder) < 1 << 20:
            return True
    return False


def file_is_too_large(error: BaseException) -> bool:
    """Whether `error`, or a cause of it, is due to a limit on the size of a file: of the file system (FAT32: 4 GiB) or of
    `ulimit -f`, which torch's message does not mention."""
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    signs = r"File too large|os error 27\b" + (f"|{TORCH_CANNOT_WRITE}" if limited else "")
    return any(getattr(cause, "errno", None) == errno.EFBIG or re.search(signs, str(cause)) for cause in _causes(error))


def not_permitted(error: BaseException, folder: str | Path) -> str:
    """The file that, by `error` or a cause of it, may not be written or read, or else `folder`, with the system's reason;
    "" for other errors."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return f"{cause.filename or folder}: {cause.strerror}"
        if found := re.search(r"(Read-only file system|Permission denied)(?= \(os error)", str(cause)):
            return f"{folder}: {found[0]}"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, then what caused it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def free_bytes(folder: str | Path) -> int:
    """Free bytes on the disk of `folder`, or of its closest parent that exists."""
    path = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free
