"""Texts drawn once, from a generator or an archive: written to a temporary file as they come, and read from there."""

import tempfile
from collections.abc import Callable, Iterable, Iterator

import pyarrow
import xxhash

from llmrecipes.config import InputError
from llmrecipes.data.tables import Notes, plain_row, say, standard_rows, tell, tell_left_out

BATCH, CHARACTERS = 1000, 4 << 20  # most texts, and about as many characters of them, in memory at once


class _Passing:
    """Rows that pass once, as `standard_rows` takes them. consumed: how many have passed."""

    def __init__(self, where: str, given: Iterable[dict]):
        self.where, self.given, self.consumed, self.left_out = where, given, 0, {}

    @property
    def rows(self) -> Iterator[dict]:
        for row in self.given:
            self.consumed += 1
            yield plain_row(row, self.left_out)

    def place(self, i: int) -> str:
        return f"{self.where}, row {i + 1}"

    def read(self, i: int, row: dict) -> dict:
        return row


def spool_texts(where: str, rows: Iterable[dict], drop_bad: bool) -> tuple[Callable[[], Iterator[str]], str]:
    """(a function that gives the texts of `rows` from the first, the digest of all texts); prints what was left out.

    The file has no name: it goes with the process. It is memory-mapped, so that its pages are the kernel's to drop.

    Raises:
        InputError: a row that cannot be used, or none that can.
    """
    notes, passing, state = Notes(where), _Passing(where, rows), xxhash.xxh3_128()
    texts = (row["text"] for row in standard_rows(passing, drop_bad, ("text",), notes))
    schema, count = pyarrow.schema([("text", pyarrow.large_string())]), 0
    with tempfile.NamedTemporaryFile() as file:
        with pyarrow.ipc.new_stream(file, schema) as writer:
            for batch in _batches(texts):
                count += len(batch)
                for text in batch:
                    state.update(text.encode())
                    state.update(b"\0")
                writer.write_batch(pyarrow.record_batch([pyarrow.array(batch, pyarrow.large_string())], schema))
        file.flush()
        mapped = pyarrow.memory_map(file.name).read_buffer()
    if not passing.consumed:
        raise InputError(f"{where}: is empty; it gave no row")
    for line in tell(notes, passing.consumed):
        say(line)
    tell_left_out(where, passing.left_out)
    if not count:
        what, number = notes.counts.most_common(1)[0]
        raise InputError(f"{notes.examples[what]}: {number} of {passing.consumed} rows are {what}; nothing is left to learn "
                         "from")  # fmt: skip

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
