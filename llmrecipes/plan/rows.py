"""How many rows a run trains on, without reading them: local files, the generated world, and sets of the Hub whose card, or
hub_rows.yaml, says it. What cannot be known in a moment is named, with what to pass instead.
"""

import csv
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from llmrecipes.config import DataArguments, DatasetSource, generator_of
from llmrecipes.formats import rows_of_object
from llmrecipes.keys.settings import Settings
from llmrecipes.plan.lookup import hub_file
from llmrecipes.preflight.folders import FILES, LINES, TABLES, kind_of, only_lines, open_file, separator_of, split_files
from llmrecipes.preflight.machine import is_hub_id

KNOWN = Path(__file__).parent / "hub_rows.yaml"
SECONDS = 1.5  # for all sources together, so that a plan takes no longer than a moment
JSON_BYTES = 1 << 25  # a file of JSON is one value: a larger one takes too long to parse
# Rows of the generated world's parts; a test compares them with the actual ones.
TINYTOWN = {
    "commoncrawl": {"train": 40000, "test": 2000}, "c4": {"train": 8000, "test": 400},
    "github": {"train": 2000, "test": 100}, "wikipedia": {"train": 3000, "test": 150},
    "books": {"train": 1800, "test": 90}, "arxiv": {"train": 1600, "test": 80},
    "stackexchange": {"train": 1700, "test": 85}, "demonstrations": {"train": 5000, "test": 300},
    "prompts": {"train": 2280, "test": 200},
}  # fmt: skip


class Uncounted(Exception):
    """Why the rows of a source are not known."""


def count_rows(s: Settings, unknown: list[str]) -> tuple[int | None, list[str]]:
    """(training rows after `split`, `max_rows`, the weights of a mixture and `test_split_size`, None if a source cannot be
    counted; a text for each source that was). Reasons and reservations go to `unknown`."""
    until, sizes, told = time.monotonic() + SECONDS, [], []
    sources = DataArguments(datasets=s["datasets"]).datasets
    for source in sources:
        name = f"{source.path}/{source.name}" if source.name else source.path
        try:
            rows, origin = _of_source(source, until)
        except Uncounted as reason:
            rows, origin = source.max_rows, "max_rows"
            least = f"; its max_rows, {rows:,}, is counted" if rows else ""
            unknown.append(f"rows of {name}: {reason}{least}")
        if rows and source.reader:
            unknown.append(f"rows of {name}: {source.reader} may make more or fewer than the {rows:,} that it reads")
        if rows and source.drop_bad_rows:
            unknown.append(f"rows of {name}: those that drop_bad_rows leaves out are counted")
        sizes.append(rows)
        told.append(f"{name} {rows:,} ({origin})" if rows is not None else "")
    if not sizes or None in sizes:
        return None, []
    weights = [source.weight for source in sources]
    if len(sizes) > 1 and all(isinstance(weight, (int, float)) and weight > 0 for weight in weights):
        sizes = shares(sizes, weights)
        told = [f"{text}: {size:,} by its weight" for text, size in zip(told, sizes, strict=True)]
    held_out = s["test_split_size"] or 0
    return sum(sizes) - math.ceil(held_out if held_out >= 1 else held_out * sum(sizes)), told


def shares(sizes: list[int], weights: list[float]) -> list[int]:
    """Rows taken of each source: in proportion to `weights`, as many as the scarcest source allows (see `data`)."""
    scale = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [max(1, round(scale * weight)) for weight in weights]


def _of_source(source: DatasetSource, until: float) -> tuple[int, str]:
    """(rows of the source's split, at most `max_rows`; where the number is from)."""
    count_of, origin = _counter(source, until)
    rows, most = sum(_of_part(part, count_of) for part in source.split.split("+")), source.max_rows
    return (most, f"{origin}, max_rows") if most and most < rows else (rows, origin)


def _of_part(part: str, count_of: Callable[[str], int]) -> int:
    """Rows of one split, or of a slice of it as `datasets` takes it: percentages are rounded to the nearest row."""
    found = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", part.strip())
    if not found:
        raise Uncounted(f"{part} is not a split that is understood here; give --train_rows")
    rows = count_of(found[1])
    start, end = (_bound(text, rows, default) for text, default in ((found[2], 0), (found[3], rows)))
    return max(0, end - start)


def _bound(text: str | None, rows: int, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)
    return min(max(value + rows if value < 0 else value, 0), rows)


def _counter(source: DatasetSource, until: float) -> tuple[Callable[[str], int], str]:
    """(a function that gives the rows of a split, where they are from); Uncounted."""
    path, place = source.path, Path(source.path)
    if path == "tinytown":
        return lambda split: _known_split(TINYTOWN.get(source.name, {}), split), "as generated"
    if generator_of(path) or path == "stdlib" or path.startswith("pypi:"):
        raise Uncounted("they would have to be made first; give --train_rows")
    if place.is_file():
        return lambda split: _whole(split, lambda: of_file(place, until)), "counted"
    if place.is_dir():
        return lambda split: _of_folder(place, source, split, until), "counted"
    if not is_hub_id(path) or path.startswith("outputs/"):
        raise Uncounted("it does not exist yet; run the stage that writes it, or give --train_rows")
    if source.data_files or source.data_dir:
        raise Uncounted("which of its files are read changes the number; give --train_rows")
    splits, origin = _of_hub(path, source.name, source.revision, until)
    return lambda split: _known_split(splits, split), origin


def _known_split(splits: dict[str, int], split: str) -> int:
    if split not in splits:
        raise Uncounted(f"nobody has counted its split {split}; give --train_rows or max_steps")
    return splits[split]


def _whole(split: str, count: Callable[[], int]) -> int:
    if split != "train":
        raise Uncounted(f"it has no split {split}; all of it is the split train")
    return count()


# ---- Files and folders ----


def of_file(path: Path, until: float) -> int:
    """Rows of a file as `data.sources` reads it."""
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            from pyarrow.parquet import read_metadata

            return read_metadata(path).num_rows
        if kind in TABLES:
            return _of_table(path, until)
        if kind == ".json":
            return _of_json(path, until)
        if kind not in (*LINES, ".txt"):
            raise Uncounted(f"{path} is not one of {', '.join(FILES)}")
        with open_file(path, "rb") as lines:
            return sum(1 for line in _in_time(lines, path, until) if line.strip())
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise Uncounted(f"{path} cannot be read: {str(error)[:200]}") from None


def _in_time(items: Iterable, path: Path, until: float) -> Iterator:
    for number, item in enumerate(items):
        if number % 4096 == 0 and time.monotonic() > until:
            raise Uncounted(f"counting {path} takes too long; give --train_rows")
        yield item


def _of_table(path: Path, until: float) -> int:
    with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        csv.field_size_limit(1 << 30)
        table = csv.reader(file, delimiter=separator_of(path, header))
        return max(0, sum(1 for row in _in_time(table, path, until) if row) - 1)


def _of_json(path: Path, until: float) -> int:
    if path.stat().st_size > JSON_BYTES:
        raise Uncounted(f"{path} is one value of {path.stat().st_size >> 20} MiB; give --train_rows")
    with open_file(path, "rt", encoding="utf-8-sig") as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("{") and "\n{" in text.strip():  # one row a line
            return sum(1 for line in text.split("\n") if line.strip())
        raise
    return len(rows_of_object(value) if isinstance(value, dict) else value)


def _of_folder(folder: Path, source: DatasetSource, split: str, until: float) -> int:
    """Rows of a split in a folder: one saved by `datasets`, SPLIT.jsonl and the like, or nothing but lines of JSON."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        has_splits = (folder / "dataset_dict.json").exists()
        home = folder / split if has_splits else folder
        if not (home / "state.json").is_file() or (not has_splits and split != "train"):
            raise Uncounted(f"it has no split {split}")
        return _of_arrow(home)
    if source.name or source.data_dir or source.data_files or (folder / "README.md").exists():
        raise Uncounted("which of its files are read is not decided here; give --train_rows")
    if files := split_files(folder, split) or (only_lines(folder) if split == "train" else []):
        return sum(of_file(file, until) for file in files)
    raise Uncounted(f"which of its files are the split {split} is not decided here; give --train_rows")


def _of_arrow(folder: Path) -> int:
    """Rows of a data set saved by `save_to_disk`: the lengths of its record batches, without their contents."""
    import pyarrow

    names = [file["filename"] for file in json.loads((folder / "state.json").read_text())["_data_files"]]
    total = 0
    for name in names:
        with pyarrow.memory_map(str(folder / name)) as file:
            total += sum(batch.num_rows for batch in pyarrow.ipc.open_stream(file))
    return total


# ---- The Hub ----


def _of_hub(path: str, name: str | None, revision: str | None, until: float) -> tuple[dict[str, int], str]:
    """(split -> rows of a set of the Hub, where they are from): its card's, else those of hub_rows.yaml."""
    card = hub_file(path, revision, "README.md", "dataset", until - time.monotonic())
    header = card and re.match(r"---\s*\n(.*?)\n---", card.decode("utf-8", "replace"), re.S)
    try:
        infos = (yaml.safe_load(header[1]) if header else {}).get("dataset_info") or []
    except (yaml.YAMLError, AttributeError):
        infos = []
    infos = [info for info in (infos if isinstance(infos, list) else [infos]) if isinstance(info, dict)]
    for info in infos:
        if info.get("config_name", "default") == (name or "default") or len(infos) == 1 and not name:
            splits = {part["name"]: part["num_examples"] for part in info.get("splits") or [] if "num_examples" in part}
            if splits:
                return splits, "the set's card"
    known = _known().get(path, {}).get("rows", {}).get(name or "default", {})
    if not known:
        raise Uncounted("its card, if it is in reach, does not say it; give --train_rows or max_steps")
    return known, "hub_rows.yaml"


@cache
def _known() -> dict:
    return yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
