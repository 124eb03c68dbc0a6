"""The raw rows of one source, each with its original number; nothing is converted yet.

A source is `module:function`, `stdlib`, `pypi:NAME==VERSION`, a local file or folder, or a Hub data set.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy
import pyarrow.parquet

from llmrecipes.config import DatasetSource, InputError, as_rows, generator_of, load_function
from llmrecipes.data.archive import load_archive
from llmrecipes.data.files import column_types, in_words, json_kind, listed_rows, opened, table_rows
from llmrecipes.data.folders import is_saved, own_files, table_files
from llmrecipes.formats import JSON, has_lone_surrogate, parse_line, rows_of_object
from llmrecipes.preflight.folders import FILES, TABLES, kind_of

# Where keys differ from row to row.
CALLS = ("tools", "functions", "tool_calls", "function_call")


@dataclass
class RawRows:
    """Raw rows of a source.

    rows: a Dataset, dictionaries, lines of JSON to be parsed one by one, or what is wrong with a row. numbers: each row's
    number, from 1, in the whole source. lines: the line each begins on in the file, if that differs. files: the file of
    each, if there are several. left_out: columns that JSON cannot hold, such as images.
    """

    where: str
    rows: datasets.Dataset | Sequence[dict | str | InputError]
    numbers: Sequence[int]
    lines: Sequence[int] | None = None
    files: Sequence[str] | None = None
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, i: int) -> str:
        """ "x.jsonl, row 7": how errors name the i-th of these rows."""
        return in_words((self.files[i] if self.files else self.where, self.numbers[i], self.lines and self.lines[i]))

    def select(self, indices: Sequence[int]) -> "RawRows":
        pick = lambda values: [values[i] for i in indices]
        rows = self.rows.select(indices) if isinstance(self.rows, datasets.Dataset) else pick(self.rows)
        return RawRows(
            self.where, rows, pick(self.numbers), self.lines and pick(self.lines), self.files and pick(self.files)
        )

    def read(self, i: int, row: dict | str | InputError) -> dict:
        """`row`, the i-th of these rows, parsed; InputError if it is not a JSON object of valid characters."""
        if isinstance(row, UnicodeError):
            raise InputError(f"{self.place(i)}: holds text that is not UTF-8")
        if isinstance(row, InputError):
            raise row
        if isinstance(row, str):
            file = self.files[i] if self.files else self.where
            return parse_line(row, f"{file}, line {self.lines[i]}", self.place(i))
        if not isinstance(row, dict):
            raise InputError(f"{self.place(i)}: expected an object {{...}}, found {str(row)[:60]}")
        return _unfilled(row) if isinstance(self.rows, datasets.Dataset) else row

    def __iter__(self) -> Iterator[dict]:
        for i, row in enumerate(each(self.rows)):
            yield self.read(i, row)


def each(rows: Iterable) -> Iterator:
    """`rows` one by one; of a table, in place of a row with text that is not UTF-8, its error."""
    count = 0
    try:
        for row in rows:
            count += 1
            yield row
    except UnicodeDecodeError:  # of some row in the batch that is read next
        for i in range(count, len(rows)):
            try:
                yield rows[i]
            except UnicodeDecodeError as error:
                yield error


def _unfilled(value: object, in_call: bool = False) -> object:
    """`value` without the nulls that Arrow fills in inside tools and their calls, for the keys of all other rows: the model
    would learn to call with arguments that the function does not have."""
    if isinstance(value, dict):
        return {
            key: _unfilled(part, in_call or key in CALLS) for key, part in value.items() if not (in_call and part is None)
        }
    return [_unfilled(part, in_call) for part in value] if isinstance(value, list) else value


def read_source(source: DatasetSource, seed: int) -> RawRows:
    """Rows of `source`: its split or a slice of one, `max_rows` of them drawn with `seed`, with the wanted columns.

    Raises:
        InputError: there is nothing, it cannot be read or has no such split; the message names the path.
    """
    if source.streaming:
        raise InputError(
            f"{source.path}: `streaming` is for texts that pretraining and the tokenizer learn from; leave it out"
        )
    if generator := generator_of(source.path):
        rows = load_function(generator, "path")(source.name, source.split)
        raw = _numbered(source.path, rows if isinstance(rows, datasets.Dataset) else list(as_rows(rows, source.path)))
    elif source.path == "stdlib" or source.path.startswith("pypi:"):
        raw = _numbered(source.path, load_archive(source))
    else:
        raw = _read_file(Path(source.path), source) if Path(source.path).is_file() else _read_folder(source)
    if source.name and source.name not in raw.where:
        raw.where = f"{raw.where}/{source.name}"
    if len(raw) == 0:
        raise InputError(f"{source.path}: is empty; nothing to read in split {source.split!r}")
    if source.reader and not source.path.startswith(("pypi:", "stdlib")):
        given = raw.rows if isinstance(raw.rows, datasets.Dataset) else list(raw)
        raw = _numbered(raw.where, list(read_with(source, raw.where, given)))
    return select_rows(raw, source, seed)


def select_rows(raw: RawRows, source: DatasetSource, seed: int) -> RawRows:
    """The rows with the source's `columns`, `max_rows` of them drawn with `seed`."""
    if names := column_names(source):
        raw = _name_columns(raw, names)
    if source.max_rows and source.max_rows < len(raw):
        raw = raw.select(numpy.random.default_rng(seed).permutation(len(raw))[: source.max_rows].tolist())
    return raw


def _numbered(where: str, rows: datasets.Dataset | Sequence) -> RawRows:
    return RawRows(where, rows, range(1, len(rows) + 1))


def read_with(source: DatasetSource, where: str, given: Sequence | datasets.Dataset) -> Iterator[dict]:
    """The rows that `reader` makes of those `given`; its own errors "row N: ..." get the file's name."""
    count = 0
    try:
        for row in as_rows(load_function(source.reader, "reader")(given), f"reader: {source.reader}"):
            count += 1
            yield row
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{source.path}, {message}") from None
    if not count:
        raise InputError(f"{source.path}: the reader {source.reader} found nothing to use in {len(given)} rows")


def column_names(source: DatasetSource) -> dict[str, str]:
    """Old -> new name of the columns that the source keeps; InputError if two get one name. Empty: all are kept."""
    names = source.columns if isinstance(source.columns, dict) else {name: name for name in source.columns or ()}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise InputError(f"{source.path}: `columns` gives the name `{twice[0]}` to two columns; give each a name of its own")
    return names


def _name_columns(raw: RawRows, names: Mapping[str, str]) -> RawRows:
    """The rows with only the columns in `names`, old -> new."""
    known = (
        raw.rows.column_names if isinstance(raw.rows, datasets.Dataset) else list(dict.fromkeys(c for r in raw for c in r))
    )
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"{raw.where}: has no column `{missing[0]}`; it has {', '.join(known)}")
    if isinstance(raw.rows, datasets.Dataset):
        rows = raw.rows.select_columns(list(names)).rename_columns({a: b for a, b in names.items() if a != b})
    else:
        rows = [{new: row[old] for old, new in names.items() if old in row} for row in raw]
    return RawRows(raw.where, rows, raw.numbers, raw.lines, raw.files)


def _read_file(path: Path, source: DatasetSource) -> RawRows:
    if not path.name.lower().endswith(FILES):
        raise InputError(f"{path}: unknown kind of file; give one of {', '.join(FILES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty")
    kind = kind_of(path)
    if kind == ".parquet":
        with suppress(pyarrow.ArrowException):  # damaged: told below
            if not pyarrow.parquet.read_metadata(path).num_rows:
                raise InputError(f"{path}: is empty; it has no rows")
        raw = _numbered(str(path), _load_dataset("parquet", source, "train", data_files=str(path)))
    elif kind in TABLES:
        raw = _read_tables([path], str(path))
    elif kind == ".json" and json_kind(path) == "list":
        raw = _numbered(str(path), [row for _, row in listed_rows(path)])
    else:
        try:
            with opened(path) as file:
                content = file.read().decode("utf-8-sig", "strict" if kind == ".json" else "surrogateescape")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not valid UTF-8 ({error})") from None
        raw = _parse(path, content)
    return raw.select(split_indices(source.split, len(raw), str(path)))


def _parse(path: Path, content: str) -> RawRows:
    kind = kind_of(path)
    if kind == ".json" and (parsed := _parse_json(path, content)) is not None:
        return _numbered(str(path), parsed)
    # Not splitlines(): a text may contain the other line endings that it splits at.
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    rows = [_as_read(line, kind == ".txt") for _, line in lines]
    return RawRows(str(path), rows, range(1, len(rows) + 1), [number for number, _ in lines])


def _as_read(line: str, is_text: bool) -> dict | str | UnicodeEncodeError:
    """The row of a line; its error if it was not UTF-8, which has left surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return error
    return {"text": line.rstrip("\r")} if is_text else line


def _parse_json(path: Path, content: str) -> list | None:
    """The row that is the whole file, or the rows of the only list in it; None if the file is one row a line."""
    try:
        value = JSON.decode(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("{") and "\n{" in content.strip():
            return None
        raise InputError(f"{path}: is not valid JSON ({error})") from None
    if isinstance(value, dict):
        value = rows_of_object(value)
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of objects, found a {type(value).__name__}")
    for number, row in enumerate(value if "\\u" in content else [], start=1):
        if has_lone_surrogate(row):
            raise InputError(f"{path}, row {number}: holds half of a character (a lone surrogate, \\ud800 to \\udfff)")
    return value


def _read_tables(files: list[Path], where: str) -> RawRows:
    """Rows of CSV or TSV files, one after the other. Columns that no shape reads as text are numbers, or true and false, if
    all cells of all files are."""
    types, rows, places = column_types(files), [], []
    for file in files:
        for place, row in table_rows(file, types=types):
            rows.append(row)
            places.append(place)
    several = [file for file, _, _ in places] if len(files) > 1 else None
    return RawRows(where if several else str(files[0]), rows, [number for _, number, _ in places], files=several)


def split_indices(split: str, num_rows: int, where: str, name: str = "train") -> list[int]:
    """The rows named by `split`, `train` or slices such as `train[:50%]+train[90%:]`, in data with a single split."""
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: num_rows})
    except (ValueError, AssertionError, KeyError):
        raise InputError(
            f"{where}: has no split {split!r}; all of it is the split {name}, of which you can take a "
            f"part, such as {name}[:90%] or {name}[90%:]"
        ) from None
    return [i for part in parts for i in range(part.from_ or 0, num_rows if part.to is None else part.to)]


def _read_folder(source: DatasetSource) -> RawRows:
    path = Path(source.path)
    if not path.exists() and (path.is_absolute() or source.path.startswith((".", "outputs/"))):
        raise InputError(f"datasets: {source.path} does not exist; run the stage that writes it first")
    # A slice is taken here, so that the rows keep their numbers; several splits in one are left to `datasets`.
    sliced = re.fullmatch(r"([\w.-]+)(\[[^\]]*\])", source.split or "")
    split = sliced[1] if sliced else source.split
    if "+" in split and table_files(source, re.split(r"[\[+]", source.split)[0]):
        return _join([_read_folder(replace(source, split=part.strip())) for part in split.split("+")], source.path)
    if is_saved(path):
        rows = datasets.load_from_disk(source.path)
        if isinstance(rows, datasets.DatasetDict):
            if split not in rows:
                raise InputError(f"{source.path}: has no split {split!r}; it has {', '.join(rows)}")
            rows = rows[split]
        elif not sliced:  # saved without splits
            rows = rows.select(split_indices(split, len(rows), source.path))
        raw = _numbered(source.path, rows)
    elif files := own_files(source, split):
        are_tables = kind_of(files[0]) in TABLES
        raw = _read_tables(files, source.path) if are_tables else _join([_parse_own(file) for file in files], source.path)
    else:
        options = {"name": source.name, "data_dir": source.data_dir, "data_files": source.data_files}
        for file in path.rglob("*.txt") if path.is_dir() else ():  # `datasets` would read any bytes
            with opened(file):
                pass
        rows = _load_dataset(source.path, source, split, **options, revision=source.revision)
        if len(rows) and rows.info.builder_name == "text":
            rows = rows.filter(lambda text: bool(text.strip()), input_columns="text")
        raw = _numbered(_name_of(source, split), rows)
    return raw.select(split_indices(source.split, len(raw), source.path, split)) if sliced else raw


def _parse_own(path: Path) -> RawRows:
    return _read_file(path, DatasetSource(str(path)))


def _join(parts: list[RawRows], where: str) -> RawRows:
    chain = lambda values: [value for some in values for value in some]
    files = chain(part.files or [part.where] * len(part) for part in parts)
    lines = chain(part.lines or [None] * len(part) for part in parts)
    return RawRows(where, chain(part.rows for part in parts), chain(part.numbers for part in parts), lines, files)


def _name_of(source: DatasetSource, split: str) -> str:
    return source.path + (f"/{source.name}" if source.name else "") + (f", {split}" if split != "train" else "")


def _load_dataset(builder: str, source: DatasetSource, split: str, **options) -> datasets.Dataset:
    if Path(source.path).exists():
        # datasets' cache tells local folders apart by their last name only, and does not see that a file changed.
        options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "llmrecipes" / _state(Path(source.path)))
    try:
        return datasets.load_dataset(builder, split=split, **options)
    except Exception as error:  # datasets raises a dozen unrelated kinds; all mean: this source cannot be read
        where = _not_utf8(Path(source.path)) if isinstance(error.__cause__, UnicodeDecodeError) else ""
        if where:
            raise InputError(f"{where}; convert it (`iconv -t utf-8`), or leave the file out") from None
        why = f"{str(error)[:300]} ({' '.join(str(error.__cause__).split())[:200]})" if error.__cause__ else str(error)[:300]
        raise InputError(f"{source.path}: cannot be read as split {split!r}: {why}") from error


def _not_utf8(path: Path) -> str:
    """The first row of the files in a folder that is not UTF-8; empty if all are. `datasets` does not say which it was."""
    for file in sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file) not in (".parquet", ".arrow")):
        with suppress(OSError, EOFError), opened(file) as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return f"{file}, row {number}: is not UTF-8 ({error.reason} at byte {error.start})"
    return ""


def _state(path: Path) -> str:
    """A name for a file or folder in its present state: its place, and path, size and modification time of each file."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(str(facts).encode()).hexdigest()[:16]
