"""Sources on the Hub, downloaded or streamed."""

from collections.abc import Iterator

import datasets

from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import CorpusSource


def open_hub(source: CorpusSource, revision: str | None):
    """The data set: a Dataset, or an IterableDataset if it is streamed."""
    options = {"data_files": source.data_files, "split": source.split, "revision": revision, "streaming": source.streaming}
    try:
        return datasets.load_dataset(source.path, source.name, **options)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError):
            raise
        raise InputError(f"{source.path}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def hub_rows(source: CorpusSource, part) -> Iterator[tuple[str, int, dict]]:
    """(where, number from 1, row) of a part."""
    data = open_hub(source, part.revision)
    where = f"{source.path}/{source.name}" if source.name else source.path
    if source.streaming:
        where = f"{where}, shard {part.shard}"
        rows, first = data.shard(num_shards=part.num_shards, index=part.shard), 0
    else:
        rows, first = data.select(range(part.first, part.last)), part.first
    for number, row in enumerate(rows, start=first + 1):
        yield where, number, row
