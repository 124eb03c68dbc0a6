"""Rows of a large source in standard shape, on disk: converted and checked once, then memory-mapped by every process.

A folder's name is a hash of what its rows depend on: the source's contents, its keys that change the rows, what checks them
(the chat template), and the code that converts them. What `datasets` makes of the rows later (their order, their tokens) it
keeps in the same folder, under names that come from the rows' own.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable

from llmrecipes.config import DatasetSource, InputError, generator_of
from llmrecipes.data.files import column_types, rows_of
from llmrecipes.data.once import written_once
from llmrecipes.data.sources import read_source
from llmrecipes.data.streams import TextSource, files_in_place
from llmrecipes.data.tables import Notes, as_json, join, load_table, say, standard_rows, tell, to_table
from llmrecipes.durable import cache_folder, file_digest, read_json, write_json
from llmrecipes.manifest import digest, fingerprint
from llmrecipes.preflight.folders import LINES, TABLES, kind_of

LIBRARY = Path(__file__).parent.parent
MANIFEST = "rows.json"
LARGE, MANY = 1 << 20, 1000  # bytes of files, and rows of a Hub set, from which rows are stored; less is not worth a file
PART = 5000  # rows
SHAPES = {"messages", "prompt-completion", "preference", "unpaired preference"}  # others are not kept as tables
CODE = ("rows.py", "shapes.py", "turns.py", "formats.py", "templates.py")
CODE += ("data/tables.py", "data/files.py", "data/sources.py", "data/streams.py")


def load_stored(
    source: DatasetSource, seed: int, shapes: tuple[str, ...], check: Callable[[dict, str], None] | None = None
) -> tuple[datasets.Dataset, Notes]:
    """As `tables.load_table`; the rows of a large source lie on disk.

    Raises:
        InputError: as there; or the disk is full, or stored rows are damaged.
    """
    identity = _identity(source, seed, shapes, check)
    if identity is None:
        return load_table(source, seed, shapes, check)
    key = digest(
        [identity, shapes, check and check.key, [fingerprint(LIBRARY / name) for name in CODE], datasets.__version__]
    )
    folder = cache_folder() / "rows" / f"{Path(source.path).name[-40:].strip('-.')}-{key}"
    with written_once(folder / MANIFEST, folder, "the environment variable LLMRECIPES_CACHE") as is_missing:
        if is_missing:
            _write(source, seed, shapes, check, folder)
    found = read_json(folder / MANIFEST)
    notes = Notes(**found["notes"])
    notes.counts.update(found["counts"])
    for line in tell(notes, found["rows"]):
        say(line)
    return _read(folder, found["parts"], key), notes


def _identity(source: DatasetSource, seed: int, shapes, check) -> list | None:
    """What the rows of `source` come from; None if that is little, or can be told only by reading all of it."""
    is_told = not source.reader and not generator_of(source.path) and not source.path.startswith(("pypi:", "stdlib"))
    if not is_told or not SHAPES.issuperset(shapes) or check is not None and not hasattr(check, "key"):
        return None
    path, given = Path(source.path), {**asdict(source), "weight": None}
    if not path.exists():
        raw = read_source(source, seed)
        is_large = isinstance(raw.rows, datasets.Dataset) and raw.rows.cache_files and len(raw) >= MANY
        return [raw.rows._fingerprint, given] if is_large else None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if sum(file.stat().st_size for file in files) < LARGE:
        return None
    return [[[str(file), file_digest(file)] for file in files], given, source.max_rows and seed]


def _write(source: DatasetSource, seed: int, shapes, check, folder: Path) -> None:
    raw = _lines(source) or as_json(read_source(source, seed))
    notes = Notes(raw.where)
    try:
        parts = _write_parts(standard_rows(raw, source.drop_bad_rows, shapes, notes, check), folder)
    except BaseException:
        for file in folder.glob("*.arrow"):
            file.unlink()
        raise
    total = raw.consumed if hasattr(raw, "consumed") else len(raw)
    if not parts:
        if not notes.counts:
            raise InputError(f"{raw.where}: is empty; nothing to read in split {source.split!r}")
        what, count = notes.counts.most_common(1)[0]
        raise InputError(f"{notes.examples[what]}: {count} of {total} rows are {what}; nothing is left to learn from")
    told = {name: getattr(notes, name) for name in ("where", "kind", "first", "examples", "taken")}
    write_json(folder / MANIFEST, {"rows": total, "notes": told, "counts": notes.counts, "parts": parts})


def _write_parts(rows: Iterator[dict], folder: Path) -> list:
    """[name, bytes, digest] of each file."""
    parts = []
    while chunk := list(islice(rows, PART)):
        table, file = to_table(iter(chunk)), folder / f"{len(parts):05d}.arrow"
        with ArrowWriter(path=str(file), features=table.features) as writer:
            writer.write_table(table.data.table)
            writer.finalize()
        parts.append([file.name, file.stat().st_size, file_digest(file)])
    return parts


def _lines(source: DatasetSource):
    """The rows of files of JSON or tables, one at a time; None if they cannot be read so."""
    files = files_in_place(source)
    if not files or source.max_rows or source.columns or source.split != "train":
        return None
    if not all(kind_of(file) in (*LINES, *TABLES, ".json") for file in files):
        return None
    types = column_types(files) if kind_of(files[0]) in TABLES else None
    return TextSource(source.path, [], lambda: rows_of(files, types=types)).texts()


def _read(folder: Path, parts: list, key: str) -> datasets.Dataset:
    tables = []
    for number, (name, size, known) in enumerate(parts):
        file = folder / name
        if not file.exists() or file.stat().st_size != size or file_digest(file) != known:
            raise InputError(f"{file}: is damaged; remove {folder}, and its rows will be read anew")
        tables.append(datasets.Dataset(MemoryMappedTable.from_file(str(file)), fingerprint=digest([key, number])))
    return join(tables)
