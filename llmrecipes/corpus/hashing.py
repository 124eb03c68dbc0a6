"""What two documents can share, as numbers: words, n-grams, shingles, MinHash."""

import re

import numpy
import xxhash

# Words; TOKEN: also each other sign. Each character of scripts that write no blanks between words is a word.
ALONE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff"
WORD = re.compile(rf"[^\W{ALONE}]+|[{ALONE}]")
TOKEN = re.compile(rf"[^\W{ALONE}]+|[{ALONE}]|[^\w\s]")
SHINGLE, PERMUTATIONS, BANDS = 5, 128, 32
PRIME = numpy.uint64(0x9E3779B97F4A7C15)


class _Words(dict):
    """Word -> 64 bits (XXH3), each computed once; emptied where it would grow without end."""

    def __missing__(self, word: str) -> int:
        if len(self) > 2_000_000:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


HASHES = _Words()


def word_hashes(text: str) -> numpy.ndarray:
    """uint64 of each word in small letters: marks, blanks and case make no difference."""
    return hashes_of(WORD.findall(text.lower()))


def hashes_of(words: list[str]) -> numpy.ndarray:
    """uint64 of each of `words`."""
    return numpy.fromiter(map(HASHES.__getitem__, words), numpy.uint64, len(words))


def ngrams(words: numpy.ndarray, n: int) -> numpy.ndarray:
    """uint64 of each `n` words in a row; empty where there are fewer."""
    count = len(words) - n + 1
    if count < 1:
        return words[:0]
    found = words
    for size in range(2, n + 1):
        found = longer(found, words, size)
    return found


def longer(grams: numpy.ndarray, words: numpy.ndarray, n: int) -> numpy.ndarray:
    """n-grams from those of one word less."""
    found = grams[: max(0, len(words) - n + 1)] * PRIME
    found ^= found >> numpy.uint64(29)
    found += words[n - 1 :]
    return found


def shingles(words: numpy.ndarray, text: str) -> numpy.ndarray:
    """uint64, sorted, each once: of 5 words; a shorter text is one shingle."""
    if len(words) >= SHINGLE:
        return numpy.unique(ngrams(words, SHINGLE))
    return ngrams(words, len(words)) if len(words) else numpy.array([xxhash.xxh3_64_intdigest(text.encode())], numpy.uint64)


def minhash(sets: list[numpy.ndarray]) -> numpy.ndarray:
    """uint32 [sets, 128] (rensa's R-MinHash)."""
    import rensa

    if not sets:
        return numpy.zeros((0, PERMUTATIONS), numpy.uint32)
    ends = numpy.cumsum([0, *map(len, sets)]).tolist()
    flat = numpy.ascontiguousarray(numpy.concatenate(sets))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, PERMUTATIONS, 42)
    return numpy.array(matrix.to_rows(), numpy.uint32)


def text_digest(text: str) -> bytes:
    """16 bytes that equal texts share; blanks at the ends make no difference."""
    return xxhash.xxh3_128_digest(text.strip().encode())
