"""Rows of local files, one at a time: JSON Lines, JSON lists, CSV and TSV, lines of text (all also as .gz), Parquet.

Each reader yields (place, row). place: the parts of "file, row 7 (line 9)". row: a dictionary, the bytes of a line that is
still to be parsed, or the InputError of a row that cannot be used, for `drop_bad_rows` to count or for others to raise.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TextIO

import pyarrow.parquet

from llmrecipes.config import InputError
from llmrecipes.formats import JSON, has_lone_surrogate, rows_of_batch
from llmrecipes.preflight.folders import TABLES, kind_of, no_text, open_file, separator_of
from llmrecipes.shapes import ANSWERS, COLUMNS, QUESTIONS

BATCH = 1000  # rows of a table converted to Python objects at once
CHARACTERS = 1 << 20  # of a JSON list, read at once
LONGEST_CELL = 1 << 30  # characters
# Columns of tables that are always read as text: an answer "42", "NA" or "null" is text.
TEXTS = {*QUESTIONS, *ANSWERS, *(name for names in COLUMNS.values() for name in names), "context", "system"} - {"label"}
TRUTH = {"true": True, "false": False}
# Of the cells of other columns. A number is one only as it would be written: 007 and 1_000 are names.
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*|(?=\.[0-9]))(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)
TYPES = (lambda cell: TRUTH[cell.lower()], int, float)
SPACES = re.compile(r"[ \t\n\r]*")


class ReadAnew(Sequence):
    """The rows that `open` returns, for a `reader`: it may go through them again and again, and they are in memory together
    only once it asks for one by its number."""

    def __init__(self, open: Callable[[], Iterable[dict]]):
        self.open = open

    def __iter__(self) -> Iterator[dict]:
        return iter(self.open())

    @cached_property
    def _all(self) -> list[dict]:
        return list(self)

    @cached_property
    def _length(self) -> int:
        return sum(1 for _ in self)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i):
        return self._all[i]


def rows_of(files: Sequence[Path], names: dict | None = None, types: dict | None = None) -> Iterator[tuple[tuple, object]]:
    """The rows of local files, one after the other.

    names: old -> new name of the columns to keep; lines are renamed by whoever parses them. types: see `column_types`.
    """
    for file in files:
        if kind_of(file) == ".parquet":
            yield from _parquet(file, names or {})
        elif kind_of(file) in TABLES:
            yield from ((place, renamed(row, names, place)) for place, row in table_rows(file, names, types))
        elif kind_of(file) == ".json" and json_kind(file) == "list":
            yield from ((place, renamed(row, names, place)) for place, row in listed_rows(file))
        else:
            yield from _lines(file)


def in_words(place: tuple) -> str:
    """ "x.jsonl, row 7 (line 9)": a place as errors name it."""
    file, number, line = place
    return f"{file}, row {number}" + (f" (line {line})" if line not in (None, number) else "")


def renamed(row: object, names: dict | None, place: tuple) -> object:
    """The row with only the columns in `names`, renamed; an InputError if it lacks one."""
    if not names or not isinstance(row, dict):
        return row
    if missing := [name for name in names if name not in row]:
        return InputError(f"{in_words(place)}: has no column `{missing[0]}`; it has {', '.join(row)}")
    return {new: row[old] for old, new in names.items()}


@contextmanager
def opened(file: Path, mode: str = "rb", **how):
    """The file, unpacked if its name ends in .gz; InputError if it is damaged, cut off, UTF-16 or no text at all."""
    try:
        with open_file(file, "rb") as handle:
            what = no_text(handle.read(16))
        if what == "UTF-16":
            raise InputError(f"{file}: is UTF-16, not UTF-8; save it as UTF-8 (in a spreadsheet: CSV UTF-8)")
        if what:
            raise InputError(f"{file}: is {what}, as its first bytes say; give its text in UTF-8")
        with open_file(file, mode, **how) as handle:
            yield handle
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: is not a complete gzip file ({error})") from None


def _lines(file: Path) -> Iterator[tuple[tuple, bytes]]:
    number, where = 0, str(file)
    with opened(file) as handle:
        for line, content in enumerate(handle, start=1):
            if content.strip():
                number += 1
                yield (where, number, line), content


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


# ---- Tables: CSV and TSV ----


def table_rows(file: Path, names: dict | None = None, types: dict | None = None) -> Iterator[tuple[tuple, object]]:
    """Rows of a table: text, in columns with `types` what these give. Cells that a row lacks are None.

    Raises:
        InputError: its header lacks a column of `names` or has one twice; quotes that do not end.
    """
    number, where = 0, str(file)
    csv.field_size_limit(LONGEST_CELL)
    # Bytes that are not UTF-8 become lone surrogates, so that the row that holds them can be named.
    with opened(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        separator = separator_of(file, handle.readline())
        handle.seek(0)
        table = csv.DictReader(handle, delimiter=separator, strict=True)
        try:
            header = table.fieldnames or []
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise InputError(f"{file}: has the column {twice[0]!r} twice; name each column once")
            if missing := [name for name in names or () if name not in header]:
                raise InputError(f"{file}: has no column `{missing[0]}`; it has {', '.join(header)}")
            for row in table:
                number += 1
                yield (where, number, None), _cells(row, types or {}, separator, f"{where}, row {number}")
        except csv.Error as error:
            raise InputError(f"{file}, row {number + 1}: cannot be read as a table: {error}") from None


def _cells(row: dict, types: dict, separator: str, where: str) -> dict | InputError:
    if None in row:
        return InputError(f"{where}: has more cells than the header; quote what holds a {separator!r}")
    if problem := not_utf8("".join(filter(None, row.values()))):
        return InputError(f"{where}: {problem}")
    for column, cell in row.items():
        if column not in TEXTS:
            row[column] = None if not cell else types[column](cell) if column in types else cell
    return row


def not_utf8(text: str) -> str:
    """What is wrong with a text that was decoded with lone surrogates for bytes that are not UTF-8; empty if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        start = error.start
        return f"is not UTF-8 (byte 0x{ord(text[start]) - 0xDC00:02x} after {text[max(0, start - 20) : start]!r})"
    return ""


def column_types(files: Sequence[Path]) -> dict[str, Callable[[str], object]]:
    """Column -> what reads its cells, for those of tables that no shape reads as text and whose cells are all numbers, or
    all true or false; the files are read through for it."""
    found: dict[str, list] = {}
    for _, row in chain.from_iterable(map(table_rows, files)):
        for column, cell in row.items() if isinstance(row, dict) else ():
            if column not in TEXTS and cell:
                found[column] = [read for read in found.get(column, TYPES) if _reads(read, cell)]
    return {column: left[0] for column, left in found.items() if left}


def _reads(read: Callable, cell: str) -> bool:
    try:
        read(cell)
    except (KeyError, ValueError):
        return False
    return read not in (int, float) or NUMBER.fullmatch(cell.strip()) is not None


# ---- JSON files of one value ----


def json_kind(file: Path) -> str:
    """Whether a file of JSON holds one "list" of rows, an object a line ("lines"), or one "object"."""
    with opened(file) as handle:
        if handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            return "list"
        handle.seek(0)
        filled = (line.removeprefix(b"\xef\xbb\xbf") for line in handle if line.strip())
        try:
            is_object = isinstance(json.loads(next(filled, b"")), dict)
        except (ValueError, RecursionError):
            is_object = False
        return "lines" if is_object and next(filled, b"").lstrip().startswith(b"{") else "object"


def listed_rows(file: Path) -> Iterator[tuple[tuple, dict | InputError]]:
    """Rows of a file that is one JSON list, of which little more than a row is in memory.

    Raises:
        InputError: it is not valid JSON, from the named row on.
    """
    with opened(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        while handle.read(1) != "[":  # white space, see `json_kind`
            pass
        for number, row in enumerate(rows_of_list(handle, str(file)), start=1):
            yield (str(file), number, None), row


def rows_of_list(handle: TextIO, where: str) -> Iterator[dict | InputError]:
    """Rows of the JSON list that `handle` holds, from behind its opening bracket on; see `listed_rows`."""
    number, text, at, is_at_end = 0, "", 0, False
    while not is_at_end:
        at = SPACES.match(text, at).end()
        if number == 0 and text[at : at + 1] == "]":
            break
        found, problem, is_cut = _next_value(text, at)
        if problem:
            more = handle.read(max(CHARACTERS, len(text) - at)) if is_cut else ""
            if not more:
                raise InputError(f"{where}, row {number + 1}: is not valid JSON ({problem})")
            text, at = text[at:] + more, 0
            continue
        row, end, after = found
        number += 1
        yield _listed(row, text[at:end], f"{where}, row {number}")
        is_at_end = text[after] == "]"
        at = after if is_at_end else after + 1
    if (text[at + 1 :] + handle.read(CHARACTERS)).strip():
        raise InputError(f"{where}: is not valid JSON (more text after the list of {number} rows)")


def _next_value(text: str, at: int) -> tuple[tuple, str, bool]:
    """((value at `at`, its end, the place of the comma or bracket after it), what is wrong, whether more text may help)."""
    try:
        value, end = JSON.raw_decode(text, at)
    except json.JSONDecodeError as error:
        # A cut number, name or \\u escape is noticed at most a few characters before the end, a cut string where it began.
        return (), error.msg, error.pos > len(text) - 20 or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested a thousand deep
        return (), str(error), False
    after = SPACES.match(text, end).end()
    is_whole = text[after : after + 1] in (",", "]")
    return (value, end, after), "" if is_whole else "Expecting ',' delimiter", after > len(text) - 20


def _listed(row: object, text: str, where: str) -> dict | InputError:
    if not isinstance(row, dict):
        return InputError(f"{where}: expected an object {{...}}, found {str(row)[:60]}")
    if problem := not_utf8(text):
        return InputError(f"{where}: {problem}")
    if "\\u" in text and has_lone_surrogate(row):
        return InputError(f"{where}: holds half of a character (a lone surrogate, \\ud800 to \\udfff)")
    return row
