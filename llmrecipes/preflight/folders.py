"""Which files of a local folder are which split, by their names alone. Imports nothing heavy."""

import gzip
import os
import re
from pathlib import Path

# Kinds of files that a source may be; read by llmrecipes.data.sources.
LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
TEXTS = (*LINES, ".json", *TABLES, ".txt")
FILES = (*TEXTS, *(f"{kind}.gz" for kind in TEXTS), ".parquet")
# How files begin that are no text, whatever their names say.
FIRST_BYTES = {
    b"%PDF-": "a PDF", b"{\\rtf": "RTF, of a word processor", b"PK\x03\x04": "a zip archive, as .docx, .epub and .odt are",
    b"\xd0\xcf\x11\xe0": "a file of an old Office", b"7z\xbc\xaf": "a 7z archive", b"\x1f\x8b": "packed by gzip",
    b"\xfd7zXZ": "packed by xz", b"\x28\xb5\x2f\xfd": "packed by Zstandard", b"PAR1": "Parquet", b"ARROW1": "Arrow",
    b"SQLite format 3": "an SQLite database", b"\x89PNG": "an image", b"\xff\xd8\xff": "an image", b"GIF8": "an image",
    b"\x7fELF": "a program", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
# Words that say in a file's name which split it is of, as `datasets` reads them (SPLIT_KEYWORDS, NON_WORDS_CHARS).
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SAVED = ("dataset_info.json", "dataset_dict.json")  # in folders that `datasets` saved: it knows the splits
# Words that say the same to people, in any case: Test, testset, dev_data, held-out.
HELD_OUT = re.compile(
    r"(?:^|[-._ 0-9])(?:(?:test(?:ing)?|eval(?:uation)?|valid(?:ation)?|dev|val)(?:[-_ ]?(?:set|data|split))?s?"
    r"|h[eo]ld[-_ ]?out)(?:$|[-._ 0-9])",
    re.I,
)


def kind_of(file: str | os.PathLike) -> str:
    """The ending that says what is in a file, in small letters: .csv for rows.csv and rows.csv.gz."""
    return Path(Path(file).name.lower().removesuffix(".gz")).suffix


def no_text(begin: bytes) -> str:
    """What a file with these first bytes is, if it is no text in UTF-8; otherwise empty."""
    return next((what for own, what in FIRST_BYTES.items() if begin.startswith(own)), "")


def open_file(file: Path, mode: str, **how):
    """The file, unpacked if its name ends in .gz."""
    return (gzip.open if file.suffix.lower() == ".gz" else open)(file, mode, **how)


def separator_of(file: Path, header: str) -> str:
    """What stands between the cells of a table. Semicolons: in many countries spreadsheets save tables that way."""
    return "\t" if kind_of(file) == ".tsv" else ";" if header.count(";") > header.count(",") else ","


def is_of_split(name: str, split: str) -> bool:
    """Whether a file of this name is of `split`: train2.csv and my-train.csv are of train."""
    words = "|".join(map(re.escape, WORDS.get(split, (split,))))
    return re.search(rf"(?:^|[-._ 0-9])(?:{words})[-._ 0-9]", name) is not None


def splits_of(name: str) -> list[str]:
    """The splits that the name of a file or folder says, as `datasets` reads it."""
    return [split for split in WORDS if is_of_split(f"{name}.", split)]


def held_out_files(folder: Path) -> list[Path]:
    """Paths in a folder of the files that seem held out although every file there would be read as split train, because no
    name is that of a split as `datasets` reads it; [] where a card or `datasets` says what is."""
    card = folder / "README.md"
    has_configs = card.is_file() and "configs:" in card.read_text("utf-8", "replace")
    if has_configs or any((folder / name).exists() for name in SAVED):
        return []
    found = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.name.lower().endswith(FILES))
    files = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    if any(splits_of(part) for file in files for part in file.parts):
        return []
    return [file for file in files if is_held_out(file)]


def is_held_out(path: Path) -> bool:
    """Whether the name of a file, or of a folder on the path to it, says to people that its rows are not for training."""
    return any(map(HELD_OUT.search, path.parts))


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of `split` in a folder that has SPLIT.jsonl, SPLIT.csv or the like; [] if it has no such file."""
    files = [file for file in sorted(folder.iterdir()) if file.name.lower().endswith(FILES)]
    is_named = any(file.name.removesuffix(end) == split for file in files for end in FILES)
    return [file for file in files if is_of_split(file.name, split)] if is_named else []


def only_lines(folder: Path) -> list[Path]:
    """The files of a folder that holds only JSON Lines, with no file named after another split; otherwise []."""
    return only_of(folder, LINES)


def only_of(folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    """The files of a folder that holds only files of these kinds, none of them named after another split than train;
    otherwise []."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".")) if folder.is_dir() else []
    plain = all(file.is_file() and kind_of(file) in kinds and splits_of(file.name) in ([], ["train"]) for file in files)
    return files if plain else []


def lost_files(folder: Path, split: str) -> list[Path]:
    """Links in a folder to data files that are not there (a download that was removed, git-annex), which would be left out
    in silence; not those whose names are of other splits."""
    name = re.split(r"[\[+]", split)[0].strip()
    links = [file for file in sorted(folder.rglob("*")) if file.is_symlink() and not file.exists()]
    return [file for file in links if file.name.lower().endswith(FILES) and splits_of(file.name) in ([], [name])]


def unread_files(folder: Path, split: str) -> list[Path]:
    """Paths in a folder of the files that are read with no split, where names say what is; [] if a card or `datasets` does.

    Files that are read here must have their split in their own name. For other kinds `datasets` looks at the folders' names,
    and at those of files only if no folder is named after a split.
    """
    if any((folder / name).exists() for name in ("README.md", *SAVED)):
        return []
    found = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.name.lower().endswith(FILES))
    files = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    own, is_split = split_files(folder, split), lambda name: any(is_of_split(f"{name}.", word) for word in (*WORDS, split))
    if not own and split == "train" and only_lines(folder):
        return []
    read = {file for file in files if is_split(file.name)}
    if own and kind_of(own[0]) not in (*TABLES, ".parquet"):
        read = {file for file in read if len(file.parts) == 1}
    else:
        read = {file for file in files if any(map(is_split, file.parts[:-1]))} or read
    return [file for file in files if file not in read] if read else []
