"""Streams the texts of a source with only a few rows in memory at a time, each with its file and original number.

JSON Lines, lines of text and Parquet are read in place; Hub data sets through `datasets`' memory-mapped tables; generators
and archives from a temporary file that their texts are written to. Anything else (CSV, JSON lists, the output of a reader
of files, generators and archives with `max_rows` or `columns`) is read as a whole.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy
import pyarrow.parquet
import xxhash

from llmrecipes.config import DatasetSource, InputError, as_rows, generator_of, load_function
from llmrecipes.data.archive import read_rows
from llmrecipes.data.hub_streams import HubStream
from llmrecipes.data.sources import LINES, RawRows, only_lines, read_source, split_indices
from llmrecipes.data.spooled import spool_texts
from llmrecipes.data.tables import Notes, load_table, standard_rows
from llmrecipes.formats import parse_line, rows_of_batch
from llmrecipes.manifest import fingerprint

BATCH = 1000  # rows of a table converted to Python objects at once


@dataclass
class TextSource:
    """A source of texts that can be read again and again.

    where: its name in messages. identity: what its texts depend on; sources with equal identities have the same texts.
    open: returns its rows from the first, as (place, row); place holds the parts of "file, row 7 (line 9)". columns: old
    name -> new name of each column to keep.
    """

    where: str
    identity: list
    open: Callable[[], Iterable[tuple[tuple, dict | bytes]]]
    drop_bad_rows: bool = False
    columns: dict | None = None
    kept: numpy.ndarray | None = field(default=None, repr=False)  # for each row, whether `split` and `max_rows` keep it
    only: frozenset[int] | None = None  # numbers among the kept rows, if not all
    without: frozenset[int] = frozenset()

    def count(self) -> int:
        """Number of rows that are kept."""
        if isinstance(self.open, HubStream):
            raise InputError(f"{self.where}: the number of its rows is not known while it is streamed; give `eval_datasets` "
                             "in place of `test_split_size`, or leave `streaming` out")  # fmt: skip
        return sum(1 for _ in self.open()) if self.kept is None else int(self.kept.sum())

    def texts(self, start: int = 0, state: dict | None = None) -> "TextReader":
        return TextReader(self, start, state)


class TextReader:
    """Iterates over texts from raw row `start` on; `consumed` counts raw rows read, `notes` what was left out.

    state: for a stream, where row `start` begins.
    """

    def __init__(self, source: TextSource, start: int, state: dict | None = None):
        self.source, self.consumed, self.notes = source, start, Notes(source.where)
        self._from = state
        self.where, self._place = source.where, ("", 0, None)

    def __iter__(self) -> Iterator[str]:
        for row in standard_rows(self, self.source.drop_bad_rows, ("text",), self.notes):
            yield row["text"]

    @property
    def state(self) -> dict | None:
        """For a stream, where the next row begins; otherwise None."""
        return getattr(self.source.open, "state", None)

    # What standard_rows needs of rows:

    @property
    def rows(self) -> Iterator[dict | bytes]:
        start, source, number = self.consumed, self.source, -1
        rows = source.open()
        if self._from:
            number, rows = start - 1, source.open.resume(self._from, start)
        for raw, (place, row) in enumerate(rows):
            if source.kept is not None and not source.kept[raw]:
                continue
            number += 1
            if number < start:
                continue
            self.consumed = number + 1
            if number not in source.without and (source.only is None or number in source.only):
                self._place = place
                yield row

    def place(self, i: int) -> str:
        file, number, line = self._place
        return f"{file}, row {number}" + (f" (line {line})" if line not in (None, number) else "")

    def read(self, i: int, row: dict | bytes) -> dict:
        file, number, line = self._place
        try:
            if isinstance(row, UnicodeDecodeError):
                raise row
            if isinstance(row, dict):
                return row | {"text": row["text"].decode()} if isinstance(row.get("text"), bytes) else row
            text = row.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.place(i)}: is not UTF-8 ({error.reason} at byte {error.start})") from None
        row = (
            {"text": text.rstrip("\r\n")}
            if file.endswith(".txt")
            else parse_line(text, f"{file}, line {line}", self.place(i))
        )
        names = self.source.columns
        if missing := [name for name in names or () if name not in row]:
            raise InputError(f"{self.place(i)}: has no column `{missing[0]}`; it has {', '.join(row)}")
        return {new: row[old] for old, new in names.items()} if names else row


def text_source(source: DatasetSource, seed: int) -> TextSource:
    """The texts of `source`; `max_rows` of them are drawn with `seed`.

    Raises:
        InputError: nothing is there, it cannot be read or has no such split or column.
    """
    if source.streaming:
        return _of_stream(source)
    files = files_in_place(source)
    if files is not None:
        return _of_files(files, source, seed)
    keys = [source.path, source.name, source.split, source.max_rows and [source.max_rows, seed]]
    module = (generator_of(source.path) or "").partition(":")[0]
    if module.startswith("llmrecipes."):  # our own generators are deterministic, and slow to run again
        load = cache(lambda: (_named(source), load_table(source, seed, ("text",))[0]))
        code = fingerprint(Path(find_spec(module).origin).parent)
        return TextSource(_named(source), [*keys, source.columns, code], lambda: _numbered(load()[0], load()[1]["text"]))
    raw = None
    if (module and not source.reader or _is_archive(source)) and not source.columns and not source.max_rows:
        rows = _rows_given(source)
        if not isinstance(rows, datasets.Dataset):
            read, texts = spool_texts(_named(source), rows, source.drop_bad_rows)
            return TextSource(_named(source), [texts], lambda: _numbered(_named(source), read()))
        raw = RawRows(_named(source), rows, range(1, len(rows) + 1))
    raw = raw or read_source(source, seed)
    if isinstance(raw.rows, datasets.Dataset) and raw.rows.cache_files and "text" in raw.rows.column_names:
        rows = raw.rows.select_columns("text")
        return TextSource(raw.where, [rows._fingerprint], lambda: _of_table(raw, rows), source.drop_bad_rows)
    table, notes = load_table(source, seed, ("text",))
    state = xxhash.xxh3_128()
    for text in table["text"]:
        state.update(text.encode())
        state.update(b"\0")
    return TextSource(notes.where, [state.hexdigest()], lambda: _numbered(notes.where, table["text"]))


def _of_stream(source: DatasetSource) -> TextSource:
    if generator_of(source.path) or source.path.startswith(("pypi:", "stdlib")) or Path(source.path).exists():
        raise InputError(f"{source.path}: `streaming` is for data sets of the Hub; leave it out")
    for key, is_wrong in {"split": "[" in source.split, "reader": source.reader}.items():
        if is_wrong:
            raise InputError(
                f"{source.path}: `{key}` {getattr(source, key)!r} needs all rows at hand; leave `streaming` out"
            )
    stream = HubStream(source)
    keys = [source.path, source.name, source.data_dir, source.data_files, source.split, source.columns, source.max_rows]
    return TextSource(stream.where, ["stream", *keys, stream.commit, source.drop_bad_rows], stream, source.drop_bad_rows)


def _named(source: DatasetSource) -> str:
    return f"{source.path}/{source.name}" if source.name else source.path


def _is_archive(source: DatasetSource) -> bool:
    return source.path == "stdlib" or source.path.startswith("pypi:")


def _rows_given(source: DatasetSource) -> datasets.Dataset | Iterator[dict]:
    """The rows of a generator or an archive, one by one, or the table that a function returned."""
    if _is_archive(source):
        return read_rows(source)
    found = load_function(generator_of(source.path), "path")(source.name, source.split)
    return found if isinstance(found, datasets.Dataset) else as_rows(found, source.path)


def _numbered(where: str, texts: Iterable[str]) -> Iterator[tuple[tuple, dict]]:
    for number, text in enumerate(texts, start=1):
        yield (where, number, None), {"text": text}


def _of_table(raw: RawRows, rows: datasets.Dataset) -> Iterator[tuple[tuple, dict]]:
    number = 0
    for batch in rows.iter(BATCH):
        for text in batch["text"]:
            yield (raw.where, raw.numbers[number], None), {"text": text}
            number += 1


# ---- Files that are read in place ----


def files_in_place(source: DatasetSource) -> list[Path] | None:
    """The files of `source` if they are line-based or Parquet, and the source needs nothing but their rows."""
    path = Path(source.path)
    if source.reader or source.data_dir or source.data_files or not path.exists():
        return None
    if path.is_file():  # a file's `name` is only a label
        return [path] if path.name.endswith((*LINES, ".txt", ".parquet")) and path.stat().st_size else None
    if source.name or (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return None
    split = re.sub(r"\[.*", "", source.split)
    readme = path / "README.md"
    if readme.exists() and "configs:" in readme.read_text(encoding="utf-8", errors="replace"):
        return None
    if parts := [p for p in sorted(path.glob(f"{split}*.parquet")) if re.fullmatch(rf"{split}(-\d.*)?\.parquet", p.name)]:
        return parts
    if split == "train" and not readme.exists():
        found = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if found and all(file.suffix == ".parquet" for file in found):
            return found
    return only_lines(path) or None if split == "train" and not readme.exists() else None


def _of_files(files: list[Path], source: DatasetSource, seed: int) -> TextSource:
    where, is_file = source.path, Path(source.path).is_file()
    names = source.columns if isinstance(source.columns, dict) else {name: name for name in source.columns or ()}
    identity = [[fingerprint(file) for file in files], source.split, names, source.drop_bad_rows]
    made = TextSource(where, identity, lambda: rows_of(files, names), source.drop_bad_rows, names)
    if source.max_rows or "[" in source.split or is_file and source.split != "train":
        total = made.count()
        own = "train" if is_file else re.sub(r"\[.*", "", source.split)
        indices = numpy.array(split_indices(source.split, total, where, own), int)
        if source.max_rows and source.max_rows < len(indices):
            indices = indices[numpy.random.default_rng(seed).permutation(len(indices))[: source.max_rows]]
            identity.append([source.max_rows, seed])
        if not len(indices):
            raise InputError(f"{where}: is empty; nothing to read in split {source.split!r}")
        made.kept = numpy.zeros(total, bool)
        made.kept[indices] = True
    return made


def rows_of(files: list[Path], names: dict) -> Iterator[tuple[tuple, dict | bytes]]:
    """The rows of local files, one after the other, as (place, row); names: old -> new name of the columns to keep."""
    for file in files:
        yield from _parquet(file, names) if file.suffix == ".parquet" else _lines(file)


def _lines(file: Path) -> Iterator[tuple[tuple, bytes]]:
    number, where = 0, str(file)
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as handle:
            for line, content in enumerate(handle, start=1):
                if content.strip():
                    number += 1
                    yield (where, number, line), content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: is broken ({error})") from None


def _parquet(file: Path, names: dict) -> Iterator[tuple[tuple, dict]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        known = table.schema_arrow.names
        if missing := [name for name in names if name not in known]:
            raise InputError(f"{file}: has no column `{missing[0]}`; it has {', '.join(known)}")
        texts = [old for old in known if names.get(old, old if not names else None) == "text"]
        number = 0
        for batch in table.iter_batches(BATCH, columns=texts or None):
            for row in rows_of_batch(batch):
                number += 1
                yield (str(file), number, None), {"text": row[texts[0]]} if texts and isinstance(row, dict) else row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: cannot be read as Parquet: {str(error)[:200]}") from None
