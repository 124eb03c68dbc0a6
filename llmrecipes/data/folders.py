"""Which files of a local folder are read, and whether here or by `datasets`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import datasets
from datasets.packaged_modules.csv.csv import CsvConfig

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.preflight.folders import FILES, TABLES, kind_of, only_lines, split_files


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote the folder."""
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def own_files(source: DatasetSource, split: str) -> list[Path]:
    """The files of a split of a local folder if they are read here, as single files are, and not by `datasets`; else []."""
    path, has_options = Path(source.path), source.name or source.data_dir or source.data_files
    if not path.is_dir() or is_saved(path):
        return []
    is_plain = not has_options and not (path / "README.md").exists()
    own = split_files(path, split) if is_plain else []
    if is_plain:
        _require_one_kind(path, own or path.rglob("*"))
    if own and kind_of(own[0]) not in (".parquet", *TABLES):
        return own
    if split == "train" and not has_options and (lines := only_lines(path)):
        return lines
    return table_files(source, split) or [file for file in own if kind_of(file) in TABLES]


def table_files(source: DatasetSource, split: str) -> list[Path]:
    """The files of a split of a local folder that `datasets` would read as CSV with pandas. They are read here instead, as a
    single file is; empty if they are of another kind, or the folder's README asks for options of pandas."""
    path, found = Path(source.path), []
    if path.is_dir() and not is_saved(path):
        options = {"data_dir": source.data_dir, "data_files": source.data_files}
        with suppress(Exception):  # raised again by whoever reads it
            found = datasets.load_dataset_builder(source.path, source.name, **options).config
    if not isinstance(found, CsvConfig):
        return []
    own = ("name", "version", "data_dir", "data_files", "description", "sep", "delimiter")
    plain = CsvConfig()
    is_plain = all(getattr(found, f.name) == getattr(plain, f.name) for f in fields(CsvConfig) if f.name not in own)
    files = [Path(file) for file in found.data_files.get(split, ())]
    return files if is_plain and found.sep in ",;\t" and all(kind_of(f) in TABLES for f in files) else []


def _require_one_kind(folder: Path, files: Iterable[Path]) -> None:
    """InputError if `files` in `folder` are of several kinds: `datasets` would read only those of the most common kind."""
    kinds = {kind_of(file) for file in files if file.name.lower().endswith(FILES)}
    if len(kinds - {".ndjson", ".jsonl", ".json"}) + bool(kinds & {".ndjson", ".jsonl", ".json"}) > 1:
        raise InputError(
            f"{folder}: holds files of several kinds ({', '.join(sorted(kinds))}), of which only one would be "
            "read; list the files one by one, or in `data_files`"
        )
