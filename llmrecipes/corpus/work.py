"""The working folder of a build: what is to be done, and what is done. A folder gets its name only when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llmrecipes.corpus.arguments import CorpusArguments, CorpusSource
from llmrecipes.corpus.parts import Part
from llmrecipes.durable import fsync_file, fsync_folder, read_json, write_json

EVALUATION = -1  # the part number of the evaluation sets


@dataclass
class Work:
    """root: output_dir/work. parts: of all sources, in order."""

    root: Path
    args: CorpusArguments
    parts: list[Part]

    @property
    def numbers(self) -> list[int]:
        """Part numbers in document order: the evaluation sets come first, before everything that could repeat them."""
        return [*([EVALUATION] if self.args.decontaminate else []), *(part.number for part in self.parts)]

    def source(self, part: Part) -> CorpusSource:
        return self.args.sources[part.source]

    def cleaned(self, number: int) -> Path:
        return self.root / "cleaned" / ("evaluation" if number == EVALUATION else f"{number:06d}")

    def pairs(self, band: int) -> Path:
        return self.root / "pairs" / f"{band:02d}.npy"

    def shard(self, part: Part) -> Path:
        return self.root.parent / "data" / self.source(part).label / f"{part.number:06d}.parquet"

    def written(self, part: Part) -> Path:
        return self.root / "written" / f"{part.number:06d}.json"

    def save(self) -> None:
        """Writes the job file, for tasks in other processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / "job.json", {"args": asdict(self.args), "parts": [asdict(part) for part in self.parts]})


def load_work(root: Path) -> Work | None:
    """The build in `root`; None if there is none."""
    job = read_json(root / "job.json")
    if not job:
        return None
    args = CorpusArguments(**job["args"])
    return Work(root, args, [Part(**{**part, "files": tuple(part["files"])}) for part in job["parts"]])


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` once all of it is on disk; leftovers of an earlier attempt are removed."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            fsync_file(file)
        try:
            temporary.replace(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(folder.parent)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A temporary file that gets its name once all of it is on disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(file.parent)
