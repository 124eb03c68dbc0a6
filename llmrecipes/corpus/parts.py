"""Parts: units of input that become one shard each. They depend only on the sources and `shard_bytes`, so that any number of
tasks keeps the same documents in the same order."""

import glob
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmrecipes.config import InputError, generator_of
from llmrecipes.corpus.arguments import FILE_TYPES, CorpusArguments, CorpusSource, is_local
from llmrecipes.manifest import MANIFEST_FILE
from llmrecipes.preflight.folders import is_held_out

PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
LINES, TEXT, PAGES, ARCHIVES = (".jsonl", ".ndjson", ".json"), (".txt", ".md"), (".html", ".htm"), (".warc", ".wet")
KINDS = (*LINES, *TEXT, *PAGES, ".parquet", ".arrow", *ARCHIVES)
TYPES = dict(zip(FILE_TYPES, (".jsonl", ".txt", ".html", ".parquet", ".arrow", ".warc"), strict=True))  # as an ending
UNREADABLE = (".zip", ".tar", ".tgz", ".7z", ".rar")  # archives that are to be unpacked first
NOT_DATA = {"dataset_info.json", "dataset_dict.json", "state.json", MANIFEST_FILE, "statistics.json", "report.json"}


@dataclass(frozen=True)
class Part:
    """number: position among all parts, which orders the documents. source: index of its source. files: local ones, in
    order.
    first, last: rows of a Hub data set. shard, num_shards: of a streamed one. revision: the resolved commit."""

    number: int
    source: int
    files: tuple[str, ...] = ()
    first: int = 0
    last: int | None = None
    shard: int = 0
    num_shards: int = 0
    revision: str | None = None


def plan_parts(args: CorpusArguments) -> list[Part]:
    """Parts of all sources.

    Raises:
        InputError: a source has no readable file, or cannot be reached.
    """
    parts = []
    for index, source in enumerate(args.sources):
        if source.path == "stdlib" or source.path.startswith("pypi:") or generator_of(source.path):
            found = [{}]
        elif is_local(source.path):
            found = [{"files": files} for files in _group(list_files(source), args.shard_bytes)]
        else:
            found = _hub_parts(source, args)
        parts += [Part(len(parts) + i, index, **about) for i, about in enumerate(found)]
    return parts


def kind_of(file: str) -> str:
    """The suffix that tells the kind of file, without that of its compression."""
    path = Path(file.lower())
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def list_files(source: CorpusSource) -> list[Path]:
    """Files of a local source, in the order of their names."""
    lines = False
    path = Path(source.path).expanduser()
    patterns = [source.data_files] if isinstance(source.data_files, str) else source.data_files
    if path.is_dir():
        if wrong := [name for name in patterns or () if not name or Path(name).is_absolute()]:
            raise InputError(f"{source.path}: data_files holds {wrong[0]!r}; write names or patterns below the folder")
        found = [file for pattern in patterns or ["**/*"] for file in path.glob(pattern)]
        _tell_of_links(path, found)
        found = [f for f in found if f.is_file() and not any(part.startswith(".") for part in f.relative_to(path).parts)]
        found = found if patterns or source.file_type else _of_known_kinds(path, found)
    elif patterns:
        raise InputError(f"{source.path}: data_files needs a folder as `path`")
    else:
        found = [path] if path.is_file() else [Path(name) for name in glob.glob(str(path), recursive=True)]
        found = [file for file in found if file.is_file()]
    if not path.exists() and not glob.has_magic(str(path)):
        raise InputError(f"{source.path}: does not exist; correct the path")
    if not found:
        raise InputError(
            f"{source.path}: has no file that can be read; it may be any of {', '.join(KINDS)}, "
            f"also compressed ({', '.join(PACKED)})"
        )
    for file in found:
        kind = TYPES[source.file_type] if source.file_type else kind_of(file.name)
        if kind in UNREADABLE:
            raise InputError(f"{file}: is an archive of files; unpack it and give the folder")
        if kind not in KINDS:
            raise InputError(
                f"{file}: unknown kind of file; it may be any of {', '.join(KINDS)}, also compressed; or say "
                f"what it is, `file_type:` {', '.join(FILE_TYPES)}"
            )
        if source.whole_files and kind not in (*TEXT, *PAGES):
            raise InputError(
                f"{file}: `whole_files` has no effect on it, only on {', '.join(TEXT)}; leave it out, or name "
                "the text files by `data_files`"
            )
        lines = lines or kind in TEXT and not source.whole_files
    if lines:
        print(f"{source.path}: each line of its text files is a document; with `whole_files: true` each file is one")
    return sorted(set(found))


def _tell_of_links(folder: Path, found: list[Path]) -> None:
    """Names links in `folder` that are not followed: to folders, which may lead back, and to nothing."""
    if lost := sorted(str(file.relative_to(folder)) for file in found if file.is_symlink() and not file.is_file()):
        names = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        print(f"{folder}: links to folders, or to nothing, are not followed ({names}); give what they lead to as a source")


def _of_known_kinds(folder: Path, files: list[Path]) -> list[Path]:
    """The readable ones of `files`, except those that accompany data (NOT_DATA, and README.md, the card). Prints the names
    of the others, and of those that seem held out."""
    found = [file for file in files if kind_of(file.name) in KINDS and file.name not in NOT_DATA]
    if any(kind_of(file.name) not in (*TEXT, *PAGES) for file in found):
        found = [file for file in found if file.name != "README.md"]
    if left := sorted(set(files) - set(found)):
        names = ", ".join(str(file.relative_to(folder)) for file in left[:3]) + (", ..." if len(left) > 3 else "")
        print(f"{folder}: {len(left)} of {len(files)} files are not read ({names}); choose files with `data_files`")
    if held := sorted(name for file in found if is_held_out(name := file.relative_to(folder))):
        names = ", ".join(map(str, held[:3])) + (", ..." if len(held) > 3 else "")
        print(f"{folder}: files whose names say they are held out are read too ({names}); choose files with `data_files`")
    return found


def _group(files: list[Path], shard_bytes: int) -> Iterator[tuple[str, ...]]:
    """Groups neighbouring files up to `shard_bytes`; a compressed file counts four times its size."""
    group, size = [], 0
    for file in files:
        own = file.stat().st_size * (4 if file.suffix in (*PACKED, ".parquet") else 1)
        if group and size + own > shard_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(str(file))
        size += own
    yield tuple(group)


def _hub_parts(source: CorpusSource, args: CorpusArguments) -> list[dict]:
    """Row ranges of a downloaded set, or shards of a stream; the revision is resolved to a commit, so that all tasks read
    the same data."""
    from llmrecipes.corpus.hub import open_hub
    from llmrecipes.data.hub_streams import commit_of, within_reach

    revision = within_reach(source.path, args.retries, lambda: commit_of(source))
    data = within_reach(source.path, args.retries, lambda: open_hub(source, revision))
    if source.streaming:
        shards = data.num_shards
        return [{"shard": i, "num_shards": shards, "revision": revision} for i in range(shards)]
    count = max(1, math.ceil((data.data.nbytes or 1) / args.shard_bytes))
    ends = [len(data) * i // count for i in range(count + 1)]
    return [{"first": a, "last": b, "revision": revision} for a, b in zip(ends, ends[1:], strict=False)]
