"""Rows of one source in a standard shape, as a table, checked one by one before anything shuffles them."""

import datetime
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal

import datasets
import numpy
import pyarrow
import pyarrow.compute

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data.sources import RawRows, each, read_source
from llmrecipes.manifest import strings
from llmrecipes.rows import is_other_prompt, to_standard
from llmrecipes.shapes import COLUMNS, TAKEN, standard_shape

# Columns of sets with one row per pair of answers, or per judged answer.
SEVERAL_A_PROMPT = (("chosen", "rejected"), ("prompt", "completion", "label"))
CHUNK = 5000  # rows held as Python objects at once
NOT_USABLE, HINT = "not usable", "; fix it, or leave such rows out with `drop_bad_rows: true`"
# What a row may not have beside the columns of its own shape: those of other shapes, and what trainers take for theirs.
LEFT_OUT = {*TAKEN, "conversations", *(name for names in COLUMNS.values() for name in names)}
IMAGES = {"image", "images", "video", "videos", "pixel_values"}  # columns that no stage shows a model
PLACEHOLDER = re.compile(r"<\|?(image|img|video)(_pad|_soft_token|_?\d+)?\|?>")  # where a text shows one
# What a row with a `prompt` of text loses to the conversations beside it, or they to it.
OTHER_PROMPT = (
    "about another question than their `prompt`, a text: the conversations beside it are read, the prompt is not",
    "prompts of text that are not the question of the conversation beside them, which is not read",
)
_TYPES = pyarrow.types
AS_TEXT = (_TYPES.is_temporal, _TYPES.is_decimal, _TYPES.is_binary, _TYPES.is_large_binary, _TYPES.is_fixed_size_binary)


@dataclass
class Notes:
    """What was left out or changed among a source's rows: reported once, one line each."""

    where: str
    kind: str = ""
    first: str = ""
    counts: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)
    taken: dict = field(default_factory=dict)

    def note(self, what: str, example: str) -> None:
        self.counts[what] += 1
        self.examples.setdefault(what, example)


def load_table(
    source: DatasetSource, seed: int, shapes: tuple[str, ...], check: Callable[[dict, str], None] | None = None
) -> tuple[datasets.Dataset, Notes]:
    """Rows of `source` in one of the standard `shapes`, in their own order, and what was noted about them.

    Left out with a line: pairs of equal answers; where prompts are wanted, all pairs of one prompt but the first; columns
    that a trainer would take for its own; with the source's `drop_bad_rows`, rows that cannot be used.

    check: raises InputError with the place, its second argument, for a row in standard shape that a stage cannot use.

    Raises:
        InputError: naming file and row of the first row that cannot be used, or if nothing is left.
    """
    raw = as_json(read_source(source, seed))
    notes = Notes(raw.where)
    if shapes == ("text",) and isinstance(raw.rows, datasets.Dataset) and "text" in raw.rows.column_names:
        table = _check_texts(raw, source.drop_bad_rows, notes)
    else:
        table = to_table(standard_rows(raw, source.drop_bad_rows, shapes, notes, check))
    for line in tell(notes, len(raw)):
        say(line)
    if len(table) == 0:
        if not notes.counts:
            raise InputError(f"{raw.where}: has no column of text or numbers; is its text UTF-8?")
        what, count = notes.counts.most_common(1)[0]
        raise InputError(f"{notes.examples[what]}: {count} of {len(raw)} rows are {what}; nothing is left to learn from")
    return table, notes


def as_json(raw: RawRows) -> RawRows:
    """The rows without what JSON cannot hold, which the stages that copy a row's other columns would fail to write: times,
    decimal numbers and bytes that are UTF-8 become text, columns of other bytes, images and sound are left out with a line.
    """
    left_out, rows = [], raw.rows
    if not isinstance(rows, datasets.Dataset):
        return _rows_as_json(raw)
    for name, feature in rows.features.items():
        if (wanted := _as_text(feature)) == feature:
            continue
        try:
            rows = rows.cast_column(name, wanted) if wanted is not None else rows.remove_columns(name)
        except (pyarrow.ArrowException, UnicodeDecodeError, TypeError):
            rows, wanted = rows.remove_columns(name), None
        if wanted is None:
            left_out.append(name)
    tell_left_out(raw.where, left_out)
    return replace(raw, rows=rows, left_out=left_out)


def tell_left_out(where: str, columns: Iterable[str]) -> None:
    """Says which `columns` were left out because JSON cannot hold their values."""
    if columns:
        say(f"{where}: left out the columns {', '.join(columns)}, which hold neither text nor numbers")


def _rows_as_json(raw: RawRows) -> RawRows:
    """`as_json` of dictionaries, such as a function returns."""
    if raw.lines is not None:  # of JSON or text
        return raw
    left_out: dict[str, bool] = {}
    rows = [plain_row(row, left_out) if isinstance(row, dict) else row for row in raw.rows]
    for row in rows if left_out else ():
        for name in left_out:
            row.pop(name, None)
    tell_left_out(raw.where, left_out)
    return replace(raw, rows=rows, left_out=[*left_out])


def plain_row(row: Mapping, left_out: dict[str, bool]) -> dict:
    """The row as JSON holds it, without columns of which that cannot be said; these go into `left_out`."""
    new = {}
    for name, value in row.items():
        try:
            new[name] = _plain(value)
        except (TypeError, UnicodeDecodeError):
            left_out[name] = True
    return new


def _plain(value):
    """`value` as JSON holds it. TypeError or UnicodeDecodeError if it is neither text nor numbers."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "microseconds")  # as Arrow writes it
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, Decimal)):
        return str(value)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return _plain(value.tolist())
    raise TypeError(type(value))


def _as_text(feature):
    """The feature with text for what JSON cannot hold; None if that cannot be text."""
    if isinstance(feature, datasets.Value):
        return datasets.Value("string") if any(is_kind(feature.pa_type) for is_kind in AS_TEXT) else feature
    if isinstance(feature, dict):
        parts = {name: _as_text(part) for name, part in feature.items()}
        return None if None in parts.values() else parts
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        part = _as_text(feature.feature)
        return None if part is None else type(feature)(part)
    return None if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video, datasets.Pdf)) else feature


def standard_rows(raw: RawRows, drop_bad: bool, shapes: tuple[str, ...], notes: Notes, check=None) -> Iterator[dict]:
    """Rows of `raw`, or of anything iterable like it, in standard shape; records in `notes` what is left out."""
    asked = set()  # prompts already seen: each occurs in all of its pairs
    for i, given in enumerate(each(raw.rows)):
        place = raw.place(i)
        try:
            given = raw.read(i, given)
            shape, row = standard_shape(given, place, shapes), to_standard(given, place, shapes)
            _require_kind(shape, row, place, notes)
            if check is not None:
                check(row, place)
        except InputError as error:
            if not drop_bad:
                raise InputError(f"{error}{HINT if notes.kind else ''}") from None
            notes.note(NOT_USABLE, str(error))
            continue
        if shape == "preference":
            if row["chosen"] == row["rejected"]:
                notes.note("pairs of equal answers", place)
                continue
            if not row["rejected"] or row["rejected"] == [{"role": "assistant", "content": ""}]:
                notes.note("pairs with an empty rejected answer, which are kept", place)
        elif shape == "text":
            row = {"text": row["text"]}
        elif shape == "prompt" and any(all(given.get(c) is not None for c in some) for some in SEVERAL_A_PROMPT):
            key = json.dumps([row["prompt"], row.get("tools")], sort_keys=True, default=str)
            if key in asked:
                notes.note("other pairs or answers of a prompt that is taken once", place)
                continue
            asked.add(key)
        if is_other_prompt(given, row):
            notes.note(OTHER_PROMPT[shape == "prompt" and isinstance(row["prompt"], str)], place)
        shows = IMAGES & given.keys() or getattr(raw, "left_out", ())
        if shows and any(map(PLACEHOLDER.search, strings([row[column] for column in COLUMNS[shape]]))):
            notes.note("taken without the images that their text has a place for", place)
        if shape not in ("prompt", "rankings"):
            for name in [name for name in row if name in LEFT_OUT and name not in COLUMNS[shape]]:
                row.pop(name)
                notes.taken.setdefault(name)
        yield row


def _require_kind(shape: str, row: dict, place: str, notes: Notes) -> None:
    """InputError unless all rows of a source have one shape, and all are texts or all messages."""
    kind = f"{shape} as {'text' if isinstance(row[COLUMNS[shape][0]], str) else 'messages'}"
    if shape in ("text", "messages"):
        kind = shape
    if not notes.kind:
        notes.kind, notes.first = kind, place
    if kind != notes.kind:
        raise InputError(f"{place}: is {kind}, but {notes.first} is {notes.kind}; all rows must be of one kind")


def to_table(rows: Iterator[dict]) -> datasets.Dataset:
    """Rows as a table with the union of their columns; values of mixed types are kept as JSON."""
    parts, chunk = [], []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            parts.append(_to_part(chunk))
            chunk = []
    if chunk:
        parts.append(_to_part(chunk))
    return join(parts) if parts else datasets.Dataset.from_dict({})


def _to_part(rows: list[dict]) -> datasets.Dataset:
    columns = dict.fromkeys(column for row in rows for column in row)
    # TRL reads the keys of this column whether or not a row has any.
    missing = {"chat_template_kwargs": {}}
    values = {c: [missing.get(c) if row.get(c) is None else row[c] for row in rows] for c in columns}
    try:
        return datasets.Dataset.from_dict(values, on_mixed_types="use_json")
    except OverflowError:
        say("numbers of more than 64 bits are kept as text")
        return datasets.Dataset.from_dict(
            {c: _wide_as_text(column) for c, column in values.items()}, on_mixed_types="use_json"
        )


def _wide_as_text(value):
    """`value` with text for whole numbers that do not fit in 64 bits."""
    if isinstance(value, dict):
        return {key: _wide_as_text(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_wide_as_text(part) for part in value]
    return str(value) if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63 else value


def join(parts: list[datasets.Dataset]) -> datasets.Dataset:
    """Concatenates tables. A column whose type differs between tables becomes JSON in all of them; a column missing from a
    table is null there."""
    types: dict[str, list] = {}
    for part in parts:
        for column, feature in part.features.items():
            known = types.setdefault(column, [])
            if feature != datasets.Value("null") and feature not in known:
                known.append(feature)
    for column, found in types.items():
        if len(found) > 1:
            numbers = all(isinstance(f, datasets.Value) and f.dtype in ("int64", "float64") for f in found)
            common = datasets.Value("float64") if numbers else datasets.Json()
            parts = [
                part.cast_column(column, common) if column in part.column_names and part.features[column] != common else part
                for part in parts
            ]
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _check_texts(raw: RawRows, drop_bad: bool, notes: Notes) -> datasets.Dataset:
    """The column `text` of a possibly large table, checked as a whole rather than row by row in Python."""
    rows = raw.rows.select_columns(["text"])
    notes.kind = "text"
    texts = rows.with_format("arrow")[:]["text"]
    bad = range(len(rows))
    with suppress(pyarrow.ArrowInvalid):  # not UTF-8: which row, is looked for below
        if pyarrow.types.is_string(texts.type) or pyarrow.types.is_large_string(texts.type):
            usable = pyarrow.compute.greater(pyarrow.compute.utf8_length(pyarrow.compute.utf8_trim_whitespace(texts)), 0)
            usable = pyarrow.compute.fill_null(usable, False)
            bad = pyarrow.compute.invert(usable).to_numpy(zero_copy_only=False).nonzero()[0]
    left_out = set()
    for i, row in zip(map(int, bad), each(rows.select(bad)), strict=True):
        try:
            to_standard(raw.read(i, row), raw.place(i), ("text",))
        except InputError as error:
            if not drop_bad:
                raise InputError(f"{error}{HINT}") from None
            notes.note(NOT_USABLE, str(error))
            left_out.add(i)
    return rows.select([i for i in range(len(rows)) if i not in left_out]) if left_out else rows


def tell(notes: Notes, total: int) -> list[str]:
    """Lines that say what was left out of `total` rows."""
    lines = [
        f"{notes.where}: {count} of {total} rows are {what} (first: {notes.examples[what]})"
        for what, count in notes.counts.items()
    ]
    if notes.taken:
        lines.append(f"{notes.where}: left out the columns {', '.join(notes.taken)}, which a trainer would take for its own")
    return lines


def say(line: str) -> None:
    """Prints a line once, not in every process."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)


def kinds_of(parts: Sequence[Notes]) -> dict[str, str]:
    """kind -> the first source with that kind."""
    found: dict[str, str] = {}
    for part in parts:
        found.setdefault(part.kind, part.where)
    return found
