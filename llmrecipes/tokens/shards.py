"""Token shards on disk: flat files of token ids, in datatrove's format, with concatenated documents. Documents are shuffled
within each shard, since sources are often sorted and neighbours share a block.

A folder holds 00000.ds (uint16 or uint32, little-endian), 00000.ds.index (uint64, the end of each document in tokens),
00000.ds.hashes (uint64, XXH3 of each document's text), ... and, written last, tokens.json with counts, digests and the
tokenizer's fingerprint.
"""

import hashlib
import itertools
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from llmrecipes.config import InputError
from llmrecipes.durable import fsync_folder, read_json
from llmrecipes.manifest import TOKENS_FILE
from llmrecipes.tokens.permutation import key_of, permute

MANIFEST, FORMAT = TOKENS_FILE, 1
ORDER = 1  # order of documents in a shard: key of the permutation, and part of a folder's name
SUFFIXES = (".ds", ".ds.index", ".ds.hashes")
SMALL = 64 << 20  # files up to this many bytes are always read in full for checking
SAMPLES, SAMPLE_BYTES = 64, 4096


class TokenStream:
    """The concatenated documents of a source as tokens, in pieces of any length.

    sizes: tokens in each piece. tokens_of, ends_of: number of a piece -> its tokens, and the ends of its documents in it;
    both may be on disk.
    """

    def __init__(
        self, sizes: Sequence[int], tokens_of: Callable[[int], np.ndarray], ends_of: Callable[[int], np.ndarray], name: str
    ):
        self.tokens_of, self.ends_of, self.name = tokens_of, ends_of, name
        self.starts = [0, *itertools.accumulate(sizes)]

    @property
    def num_tokens(self) -> int:
        return self.starts[-1]

    def read(self, start: int, out: np.ndarray) -> None:
        """Copies the len(out) tokens from `start` on into `out`."""
        done = 0
        while done < len(out):
            number = bisect_right(self.starts, start + done) - 1
            offset = start + done - self.starts[number]
            part = self.tokens_of(number)[offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def document_ends(self, start: int, end: int) -> np.ndarray:
        """Ends of documents with start < end of document <= end, as positions in the stream."""
        found = []
        for number in range(bisect_right(self.starts, start) - 1, len(self.starts) - 1):
            base = self.starts[number]
            if base >= end:
                break
            ends = self.ends_of(number)
            low, high = np.searchsorted(ends, np.array([max(start - base, 0), end - base], ends.dtype), side="right")
            found.append(ends[low:high].astype(np.int64) + base)
        return np.concatenate(found) if found else np.empty(0, np.int64)


def stream_in_memory(documents: Sequence[Sequence[int]], name: str) -> TokenStream:
    """The stream of a few texts in memory, such as held-out ones."""
    lengths = np.array([len(ids) for ids in documents], np.int64)
    tokens = np.fromiter((i for ids in documents for i in ids), np.uint32, int(lengths.sum()))
    ends = np.cumsum(lengths).astype(np.uint64)
    return TokenStream([len(tokens)], [tokens].__getitem__, [ends].__getitem__, name)


class TokenShards(TokenStream):
    """The shards in `folder`, memory-mapped."""

    def __init__(self, folder: Path):
        self.folder, self.manifest = Path(folder), read_json(Path(folder) / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise InputError(f"{folder}: its {MANIFEST} is from another version; remove the folder to tokenise again")
        self.files = [f"{self.folder}/{shard['name']}.ds" for shard in self.manifest["shards"]]
        sizes = [shard["tokens"] for shard in self.manifest["shards"]]
        super().__init__(sizes, self._tokens_of, self._ends_of, self.manifest["source"])

    def _tokens_of(self, number: int) -> np.ndarray:
        return _mapped(self.files[number], self.manifest["dtype"])

    def _ends_of(self, number: int) -> np.ndarray:
        return _mapped(self.files[number] + ".index", "uint64")

    @property
    def num_documents(self) -> int:
        return self.manifest["documents"]

    def hashes(self) -> list[np.ndarray]:
        """Hashes of the texts, shard by shard."""
        return [_mapped(f"{file}.hashes", "uint64") for file in self.files]

    def check(self, tokenizers: set[str], whole: bool, digests: bool = True) -> None:
        """InputError naming what is wrong: made by another tokenizer than those with fingerprints `tokenizers`, or a file is
        missing, truncated or altered.

        A file is read in full if it is small, if its mtime is not the recorded one, or if `whole`; otherwise parts of it.
        digests: whether to read files at all.
        """
        if self.manifest["tokenizer"] not in tokenizers:
            raise InputError(
                f"{self.folder}: was made by another tokenizer than this run's; tokenize the text with this one"
            )
        for shard in self.manifest["shards"]:
            for suffix, noted in shard["files"].items():
                file = self.folder / (shard["name"] + suffix)
                if problem := _damage(file, noted, whole, digests):
                    raise InputError(f"{file}: {problem}; remove {self.folder} to tokenise again")


@lru_cache(maxsize=1024)
def _mapped(file: str, dtype: str) -> np.ndarray:
    # A plain ndarray view: slicing np.memmap costs ten times as much.
    empty = os.path.getsize(file) == 0
    return (
        np.empty(0, dtype) if empty else np.memmap(file, dtype=np.dtype(dtype).newbyteorder("<"), mode="r").view(np.ndarray)
    )


def _damage(file: Path, noted: dict, whole: bool, digests: bool) -> str:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return "is gone"
    if stat.st_size != noted["bytes"]:
        return f"has {stat.st_size:,} bytes instead of {noted['bytes']:,}"
    if not digests:
        return ""
    whole = whole or stat.st_size <= SMALL or stat.st_mtime_ns != noted["changed"]
    found, kind = (sha256_of(file), "sha256") if whole else (sample_of(file), "sample")
    return "" if found == noted[kind] else "has been altered"


def sha256_of(file: Path) -> str:
    """The file's SHA-256 as hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sample_of(file: Path) -> str:
    """SHA-256 of evenly spaced parts of a file."""
    size, state = file.stat().st_size, hashlib.sha256()
    with file.open("rb", buffering=0) as handle:
        for place in range(SAMPLES):
            handle.seek(max(0, size - SAMPLE_BYTES) * place // (SAMPLES - 1))
            state.update(handle.read(SAMPLE_BYTES))
    return state.hexdigest()


class ShardWriter:
    """A shard being written: `add` documents, then `close`, which shuffles them and gives the files their final names."""

    def __init__(self, folder: Path, name: str, dtype: str):
        self.folder, self.name, self.dtype = folder, name, dtype
        self.ends, self.hashes, self.tokens, self.bytes = array("Q"), array("Q"), 0, 0
        self.file = (folder / f"{name}.unshuffled.part").open("wb")

    def add(self, ids: Sequence[int], text_hash: int, num_bytes: int) -> None:
        np.array(ids, dtype=self.dtype).tofile(self.file)
        self.tokens += len(ids)
        self.bytes += num_bytes
        self.ends.append(self.tokens)
        self.hashes.append(text_hash)

    def close(self) -> dict:
        """Finishes the shard; returns its entry for tokens.json."""
        self.file.close()
        with open(self.file.name, "rb", buffering=0) as unshuffled:
            for suffix, parts in zip(SUFFIXES, self._shuffled(unshuffled.fileno()), strict=True):
                with (self.folder / f"{self.name}{suffix}.part").open("wb") as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
        Path(self.file.name).unlink()
        files = {}
        for suffix in SUFFIXES:
            file = self.folder / (self.name + suffix)
            (self.folder / f"{file.name}.part").replace(file)
            stat = file.stat()
            files[suffix] = {"bytes": stat.st_size, "changed": stat.st_mtime_ns, "sha256": sha256_of(file)}
            files[suffix]["sample"] = sample_of(file)
        fsync_folder(self.folder)
        counts = {"documents": len(self.ends), "tokens": self.tokens, "bytes": self.bytes}
        return {"name": self.name, **counts, "files": files}

    def _shuffled(self, unshuffled: int) -> tuple[Iterable[bytes | np.ndarray], ...]:
        """What goes into the file of each of SUFFIXES, with the documents in an order that depends only on their number and
        the shard's. unshuffled: descriptor of the file that `add` wrote."""
        ends = np.array(self.ends, np.int64)
        order = permute(np.arange(len(ends)), len(ends), key_of(ORDER, int(self.name)))
        starts, stops = (ends - np.diff(ends, prepend=0))[order], ends[order]
        size = np.dtype(self.dtype).itemsize
        places = zip((starts * size).tolist(), ((stops - starts) * size).tolist(), strict=True)
        documents = (os.pread(unshuffled, num_bytes, start) for start, num_bytes in places)  # mapped, all would be resident
        return documents, [np.cumsum(stops - starts).astype(np.uint64)], [np.array(self.hashes, np.uint64)[order]]
