"""Rows of one file of an archive, read from a stream.

| member | rows |
|---|---|
| .jsonl .ndjson | one per line |
| .json | one per element of a list, or per value of an object of objects |
| .csv .tsv | one per line, columns from the header |
| .parquet | one per row |
| any other | one per file: {"text": ..., "file": path} |
"""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llmrecipes.config import InputError
from llmrecipes.data.files import LONGEST_CELL, not_utf8, rows_of_list
from llmrecipes.formats import JSON, parse_jsonl

CELLS, TABLE_BYTES = 100_000_000, 4 << 30  # rows times columns, and unpacked bytes, of a parquet file
BATCH = 256  # rows of it at a time


def read_member(name: str, stream: BinaryIO, where: str, as_text: bool = False) -> Iterator[dict]:
    """Rows of one file (see the table above), with one line, row of a JSON list or batch of a table in memory at a time; of
    a JSON object and of text, all.

    Raises:
        InputError: "where, line 3: ..." if it is not what its ending says; where it is also damaged, that.
    """
    ending = "" if as_text else Path(name).suffix.lower()
    try:
        if ending == ".parquet":
            yield from _parquet_rows(stream, where)
        elif ending in (".jsonl", ".ndjson"):
            yield from parse_jsonl(_lines(stream, where), where)
        elif ending == ".json":
            yield from _json_rows(stream, where)
        elif ending in (".csv", ".tsv"):
            yield from _csv_rows(stream, "\t" if ending == ".tsv" else ",", where)
        else:
            content = stream.read()
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = content.decode("latin-1")  # old plain text; every byte is a Latin-1 character
            yield {"text": text.replace("\r\n", "\n"), "file": name}
    except InputError:
        while stream.read(1 << 20):  # to the end, where the archive has its checksum: damage explains the rest
            pass
        raise


def _lines(stream: BinaryIO, where: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}, line {number}: not UTF-8 at byte {error.start + 1} of the line") from None


def _parquet_rows(stream: BinaryIO, where: str) -> Iterator[dict]:
    import pyarrow.parquet

    with tempfile.TemporaryFile() as copy:  # it is read in parts and from its end, which archives cannot do
        shutil.copyfileobj(stream, copy, 1 << 20)
        try:
            file = pyarrow.parquet.ParquetFile(copy)
            about = file.metadata
            # A column that repeats one value takes a few bytes, whatever the number of rows.
            if about.num_rows * about.num_columns > CELLS or _size_of(about) > TABLE_BYTES:
                raise InputError(f"{where}: {about.num_rows:,} rows of {about.num_columns} columns are too much")
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: column names that are not UTF-8
            raise InputError(f"{where}: not a parquet file ({' '.join(str(error).split())})") from None


def _json_rows(stream: BinaryIO, where: str) -> Iterator[dict]:
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        begin = text.read(1)
        while begin.isspace():
            begin = text.read(1)
        if begin != "[":
            yield from _object_rows(begin + text.read(), where)
            return
        for row in rows_of_list(text, where):
            if isinstance(row, InputError):
                raise row
            yield row
    finally:
        text.detach()  # or it would close the stream


def _object_rows(content: str, where: str) -> list[dict]:
    """Rows of one object: its values, if all are objects, or itself."""
    if problem := not_utf8(content):
        raise InputError(f"{where}: {problem}")
    try:
        value = JSON.decode(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a key twice; a number of thousands of digits; nested a thousand deep
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a list of objects or an object of objects")
    return list(value.values()) if all(isinstance(item, dict) for item in value.values()) else [value]


def _csv_rows(stream: BinaryIO, delimiter: str, where: str) -> Iterator[dict]:
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter=delimiter)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{where}, line {reader.line_num}: {len(reader.fieldnames)} columns in the header, another number here"
                )
            yield row
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 after line {reader.line_num}") from None
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: {error}") from None
    finally:
        text.detach()  # or it would close the stream


def _size_of(about) -> int:
    return sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
