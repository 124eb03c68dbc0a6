"""Data sets of the Hub read over the network, row by row, without a copy; an interrupted read continues where it was."""

import errno
import time
from collections.abc import Callable, Iterator

import datasets
import huggingface_hub

from llmrecipes.config import DatasetSource, InputError

NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "http", "ssl"}  # not all OSErrors
RETRIES = 3


def commit_of(source) -> str | None:
    """The commit that `revision` (or the main branch) points to now; a full commit hash, or any name offline, is
    unchanged.

    source: has a `path` and a `revision`.
    """
    if source.revision and len(source.revision) == 40 or huggingface_hub.constants.HF_HUB_OFFLINE:
        return source.revision
    return huggingface_hub.HfApi().dataset_info(source.path, revision=source.revision).sha


def within_reach(path: str, retries: int, read: Callable):
    """The result of `read()`, retried up to `retries` times with growing waits.

    Raises:
        InputError: the network or a disk is still out of reach; the message names the source.
    """
    for attempt in range(retries + 1):
        try:
            return read()
        except Exception as error:
            wait(path, error, attempt, retries)


def wait(path: str, error: Exception, attempt: int, retries: int) -> None:
    """Waits before `path` is tried again after `error` in attempt number `attempt`, from 0.

    Raises:
        InputError: that was the last one, or there is no such data set.
        Exception: `error` itself, if neither the network nor a disk raised it, or if the disk is full.
    """
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):  # `datasets` raises it too if there is no such data set
        raise InputError(f"{path}: cannot be read: {text[:300]}") from None
    is_network = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK
    if not is_network or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if attempt == retries:
        raise InputError(
            f"{path}: out of reach after {retries + 1} tries ({text[:200]}); shards that are finished are "
            "kept, the same command continues with the rest"
        ) from None
    time.sleep(min(60, 2**attempt))


class HubStream:
    """The rows of a source at one commit, as (place, row); called again, it begins again.

    `state` is where the last call has got to, and `resume(state)` continues there, from the file that was being read.
    """

    def __init__(self, source: DatasetSource):
        self.source, self.where = source, f"{source.path}/{source.name}" if source.name else source.path
        self.commit = within_reach(source.path, RETRIES, lambda: commit_of(source))
        self._rows: datasets.IterableDataset | None = None

    def __call__(self) -> Iterator[tuple[tuple, dict]]:
        return self.resume(None)

    @property
    def state(self) -> dict | None:
        return self._rows and self._rows.state_dict()

    def resume(self, state: dict | None, read: int = 0) -> Iterator[tuple[tuple, dict]]:
        """The rows after `state`; `read` rows came before."""
        tries = 0
        while True:
            self._rows = within_reach(self.source.path, RETRIES, self._open)
            if state:
                self._rows.load_state_dict(state)
            try:
                for row in self._rows:
                    read, tries = read + 1, 0
                    yield (self.where, read, None), self._rename(row, read)
                return
            except Exception as error:
                wait(self.source.path, error, tries, RETRIES)
                state, tries = self._rows.state_dict(), tries + 1

    def _open(self) -> datasets.IterableDataset:
        source = self.source
        options = {"data_dir": source.data_dir, "data_files": source.data_files, "split": source.split}
        try:
            rows = datasets.load_dataset(source.path, source.name, **options, revision=self.commit, streaming=True)
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            if isinstance(error, OSError):
                raise
            raise InputError(f"{source.path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
        return rows.take(source.max_rows) if source.max_rows else rows

    def _rename(self, row: dict, number: int) -> dict:
        names = self.source.columns
        if not names:
            return row
        names = names if isinstance(names, dict) else {name: name for name in names}
        if missing := [name for name in names if name not in row]:
            raise InputError(f"{self.where}, row {number}: has no column `{missing[0]}`; it has {', '.join(row)}")
        return {new: row[old] for old, new in names.items()}
