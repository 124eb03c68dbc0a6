"""Where rows come from and where the result goes, checked without reading rows or importing anything."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from llmrecipes.config import nearest
from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.keys.values import shown
from llmrecipes.locks import find_holder
from llmrecipes.manifest import plain_difference, read_manifest, standing
from llmrecipes.preflight.disk import leads_nowhere
from llmrecipes.preflight.folders import FILES, held_out_files, lost_files, splits_of, unread_files

# The generated world's parts and their splits; a test compares them with the actual ones.
_TEXTS = ("commoncrawl", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange", "demonstrations", "prompts")
TINYTOWN = dict.fromkeys(_TEXTS, ("train", "test")) | dict.fromkeys(("questions", "abilities"), ("validation", "test"))


def sources(s: Settings) -> Problems:
    """Data sources of unknown kinds, and parts of the generated world that do not exist."""
    for key, source in _sources(s):
        path, name, split = source["path"], source.get("name"), source.get("split", "train")
        if os.path.isfile(path) and not path.lower().endswith(FILES):
            yield key, f"{path}: unknown kind of file; give one of {', '.join(FILES)}"
        elif path == "tinytown" and name not in TINYTOWN:
            which = f"there is no part {shown(name)}" if name else "`name` is missing"
            yield key, f"tinytown: {which}; choose one of {', '.join(TINYTOWN)}"
        elif path == "tinytown" and split not in TINYTOWN[name]:
            yield key, f"tinytown: {name} has no split {shown(split)}; choose one of {', '.join(TINYTOWN[name])}"
        elif "/" not in path and path not in ("tinytown", "stdlib") and not os.path.exists(path):
            if meant := nearest(path, ("tinytown", "stdlib")):
                yield key, f"{shown(path)} is not a world{meant}"
        elif split.startswith("train") and not source.get("data_files") and os.path.isdir(path):
            if found := held_out_files(Path(path, source.get("data_dir") or "")):
                text = "by its name it is held out, but like every file there it would be read as split train"
                yield key, f"{path}: {found[0]}: {text}; list the files to train on one by one, or in `data_files`"
        if not source.get("data_files") and (lost := lost_files(Path(path), split)):
            yield key, f"{lost[0]}: is a link to a file that is not there; fetch what it names, or remove the link"


def unread(s: Settings) -> Problems:
    """Files of a source's folder that are read with none of its splits."""
    for key, source in _sources(s):
        folder, split = Path(source["path"]), re.split(r"[\[+]", str(source.get("split", "train")))[0].strip()
        if not folder.is_dir() or any(source.get(option) for option in ("name", "data_dir", "data_files")):
            continue
        for file in folder.iterdir():
            if len(names := splits_of(file.name)) > 1 and split in names and file.name.endswith(FILES):
                yield key, f"{file}: its name is of several splits, each of which reads it: {', '.join(names)}; rename it"
        if left := unread_files(folder, split):
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            named = ", ".join(map(str, left[:5]))
            yield key, f"{folder}: not read, by their names they are of no split: {named}{more}; list them one by one"


# What of a source says which rows are read.
OF_ROWS = ("name", "data_dir", "data_files", "split", "columns", "revision", "reader")


def doubled(s: Settings) -> Problems:
    """Sources that are named more than once, without weights that would say what this is for."""
    for key in ("datasets", "eval_datasets"):
        is_apart = key == "eval_datasets" and "health_check" in s.keys  # each is measured by itself
        found = [source for place, source in _sources(s) if place == key and not is_apart]
        if any(source.get("weight") is not None for source in found):
            continue
        of_rows = [[({"split": "train"} | source).get(name) for name in OF_ROWS] for source in found]
        read = [[_path(source["path"]), *own] for source, own in zip(found, of_rows, strict=True)]
        for i, source in enumerate(found):
            if (times := read.count(read[i])) > 1 and read.index(read[i]) == i:
                count = "twice" if times == 2 else f"{times} times"
                text = (
                    f"{source['path']} is named {count}: its rows are read {count}, and count {times} beside those of others"
                )
                yield key, f"{text}; name it once, or give every source a `weight`"


def _path(path: str) -> str:
    return os.path.realpath(path) if os.path.exists(path) else path


def _sources(s: Settings) -> Iterator[tuple[str, dict]]:
    """(key, source with a `path`) for each of the data sources."""
    for key in ("datasets", "eval_datasets", "watch_questions"):
        value = s.values.get(key)
        for entry in value if isinstance(value, list) else filter(None, [value]):
            source = {"path": entry} if isinstance(entry, str) else entry
            if isinstance(source.get("path"), str):
                yield key, source


def occupied(s: Settings, given: dict) -> Problems:
    """An `output_dir` that holds another run or foreign files, or that another process is writing to.

    given: the config as the user wrote it. If only the contents of inputs differ, `check_run` reports that later.
    """
    output_dir = s["output_dir"]
    if "force" not in s.keys or "stages" in s.keys or not output_dir or s["force"] or s["preview"]:
        return
    path = Path(output_dir)
    if leads_nowhere(path.absolute()) or not path.is_dir():
        return
    held, rebuilds = standing(path, ""), s["annotator"] in ("page", "llm")  # pairs can be rebuilt from stored judgements
    if held == "foreign" and not any(path.glob("checkpoint-*")):  # with checkpoints it is a run that lost its manifest
        yield "output_dir", f"{output_dir} holds files that no run wrote; choose another output_dir or --force"
    elif held == "another" and not rebuilds and (how := plain_difference(read_manifest(path) or {}, given)):
        yield "output_dir", f"{output_dir} holds another run ({how}); --force overwrites it"
    elif holder := find_holder(path):
        yield "output_dir", f"{holder} is writing in {output_dir}; wait for it, or stop it"
