"""Streams the texts of a source with only a few rows in memory at a time, each with its file and original number.

Local files (`llmrecipes.data.files`) are read in place; Hub data sets through `datasets`' memory-mapped tables; generators,
archives and what a `reader` makes of rows from a temporary file that their texts are written to.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy

from llmrecipes.config import DatasetSource, InputError, generator_of
from llmrecipes.data.files import column_types, in_words, json_kind, renamed, rows_of
from llmrecipes.data.folders import own_files, table_files
from llmrecipes.data.hub_streams import HubStream
from llmrecipes.data.sources import RawRows, column_names, each, split_indices
from llmrecipes.data.spooled import made_rows, named, spool_texts
from llmrecipes.data.tables import Notes, as_json, plain_row, say, standard_rows, tell_left_out
from llmrecipes.formats import parse_line
from llmrecipes.manifest import fingerprint
from llmrecipes.preflight.folders import LINES, TABLES, is_of_split, kind_of, only_of

BATCH = 1000  # rows of a table converted to Python objects at once
IN_ORDER = (*LINES, ".txt", ".parquet")  # of files of these kinds, `max_rows` takes rows in their own order
LARGE = 64 << 20  # bytes of a JSON file that is read as a whole from which that is said


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
            raise InputError(
                f"{self.where}: the number of its rows is not known while it is streamed; give `eval_datasets` "
                "in place of `test_split_size`, or leave `streaming` out"
            )
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
        self.where, self.last = source.where, ("", 0, None)

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
                self.last = place
                yield row

    def place(self, i: int) -> str:
        return in_words(self.last)

    def read(self, i: int, row: dict | bytes | Exception) -> dict:
        if isinstance(row, InputError):
            raise row
        file, number, line = self.last
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
            if file.lower().endswith((".txt", ".txt.gz"))
            else parse_line(text, f"{file}, line {line}", self.place(i))
        )
        return self.read(i, renamed(row, self.source.columns, self.last))


def text_source(source: DatasetSource, seed: int) -> TextSource:
    """The texts of `source`; `max_rows` of them are drawn with `seed`.

    Raises:
        InputError: nothing is there, it cannot be read or has no such split or column.
    """
    if source.streaming:
        return _of_stream(source)
    files = files_in_place(source)
    if files and not source.reader and (not source.max_rows or _all_are(files, IN_ORDER)):
        return _of_files(files, source, seed)
    module = (generator_of(source.path) or "").partition(":")[0]
    if module.startswith("llmrecipes.") and not source.reader:  # our own generators are deterministic, and slow to run again
        keys = [source.path, source.name, source.split, source.max_rows and [source.max_rows, seed], source.columns]
        code = fingerprint(Path(find_spec(module).origin).parent)
        made = cache(lambda: _made(source, None, seed))
        return TextSource(named(source), [*keys, code], lambda: made().open())
    if files and source.reader and _all_are(files, (".parquet",)):
        files = None  # a table on disk, which the reader is given as it is
    path = Path(source.path)
    if kind_of(path) == ".json" and path.is_file() and (size := path.stat().st_size) > LARGE and not files:
        say(f"{path}: {size >> 20:,} MiB of JSON, which are read as a whole; write one row a line (.jsonl)")
    return _made(source, files, seed)


def _made(source: DatasetSource, files: list[Path] | None, seed: int) -> TextSource:
    """The texts of a source that is not read in place."""
    where, left_out = named(source), {}
    given = made_rows(source, files and (lambda: _rows_of_files(files, source, seed)), seed, left_out)
    if isinstance(given, RawRows):
        where, rows = given.where, given.rows
        if isinstance(rows, datasets.Dataset) and rows.cache_files and "text" in rows.column_names:
            rows = rows.select_columns("text")
            return TextSource(where, [rows._fingerprint], lambda: _of_table(given, rows), source.drop_bad_rows)
        given = _placed(as_json(given), left_out)
    read, texts = spool_texts(TextSource(where, [], lambda: given, source.drop_bad_rows).texts())
    tell_left_out(where, left_out)
    return TextSource(where, [texts], lambda: _numbered(where, read()))


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
    return TextSource(stream.where, ["stream", *keys, stream.commit, False], stream, source.drop_bad_rows)


def _rows_of_files(files: list[Path], source: DatasetSource, seed: int) -> Iterator[tuple[tuple, object]]:
    """The rows of files, of the source's split; for a `reader`, cells of tables that are numbers or truth values as such."""
    types = column_types(files) if source.reader and _all_are(files, TABLES) else None
    reader = _of_files(files, replace(source, columns=None, max_rows=None), seed, types).texts()
    for row in reader.rows:
        try:
            row = reader.read(0, row)
        except InputError as error:
            row = error
        yield reader.last, row


def _placed(raw: RawRows, left_out: dict) -> Iterator[tuple[tuple, object]]:
    for i, given in enumerate(each(raw.rows)):
        try:
            row = plain_row(raw.read(i, given), left_out)
        except InputError as error:
            row = error
        yield (raw.files[i] if raw.files else raw.where, raw.numbers[i], raw.lines and raw.lines[i]), row


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
    """The files of `source` if all of them can be read row by row."""
    path, splits = Path(source.path), {re.sub(r"\[.*", "", part.strip()) for part in source.split.split("+")}
    if path.is_file():  # a file's `name` is only a label
        files = [path] if path.stat().st_size else []
    else:
        files = _files_of_folder(path, source, splits.pop()) if path.is_dir() and len(splits) == 1 else []
    is_in_order = files and not source.reader and _all_are(files, IN_ORDER)
    if not files or not is_in_order and "+" in source.split:  # its parts may come in another order
        return None
    is_json = _all_are(files, (".json",))
    return files if _all_are(files, IN_ORDER + TABLES) or is_json and json_kind(files[0]) != "object" else None


def _all_are(files: list[Path], kinds: tuple[str, ...]) -> bool:
    return all(kind_of(file) in kinds for file in files)


def _files_of_folder(path: Path, source: DatasetSource, split: str) -> list[Path]:
    readme, has_options = path / "README.md", source.name or source.data_dir or source.data_files
    if has_options or readme.exists() and "configs:" in readme.read_text(encoding="utf-8", errors="replace"):
        return table_files(source, split)
    if parts := [file for file in sorted(path.glob("*.parquet")) if is_of_split(file.name, split)]:
        return parts
    if split == "train" and not readme.exists() and (found := only_of(path, (".parquet",))):
        return found
    return own_files(source, split)


def _of_files(files: list[Path], source: DatasetSource, seed: int, types: dict | None = None) -> TextSource:
    where, is_file, names = source.path, Path(source.path).is_file(), column_names(source)
    # Always False: what was made before a row that cannot be used goes on with `drop_bad_rows` (see tokens.building).
    identity = [[fingerprint(file) for file in files], source.split, names, False]
    made = TextSource(where, identity, lambda: rows_of(files, names, types), source.drop_bad_rows, names)
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
