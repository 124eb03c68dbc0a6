"""What two documents can share, as hashes: words, n-grams, shingles, MinHash sketches.

A shingle is a run of 5 words; MinHash (Broder 1997) keeps, for each of 128 random permutations of all hashes, the smallest
hash of a document's shingle set. Two sets share that minimum with probability equal to their Jaccard similarity.
"""

import re
import unicodedata
from functools import lru_cache

import numpy
import xxhash

# WORD: words; TOKEN: also every other symbol. In scripts without spaces between words, each character is a word.
ALONE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff"
WORD = re.compile(rf"[^\W{ALONE}]+|[{ALONE}]")
TOKEN = re.compile(rf"[^\W{ALONE}]+|[{ALONE}]|[^\w\s]")
# What splits a text in which no character stands alone into the same tokens, sooner; in ASCII, words are found by bytes.
IS_ALONE, OTHER_TOKEN = re.compile(f"[{ALONE}]"), re.compile(r"\w+|[^\w\s]")
LOWER_WORDS = bytes(ord(chr(i).lower()) if chr(i).isalnum() or chr(i) == "_" else 32 for i in range(128)) + bytes(128)
# Vowel signs, points and accents, which belong to the word that they stand in although Python's \w leaves them out; in
# scripts without spaces each stands alone. Characters that are not seen (soft hyphens, directions, variants) are left out.
MARKS = "".join(
    chr(i)
    for first, last in ((0x300, 0x2000), (0xA600, 0xAC00))
    for i in range(first, last)
    if unicodedata.category(chr(i))[0] == "M" and not 0xE00 <= i <= 0xEFF
)
UNSEEN = r"\u00ad\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff"
MARKED_WORD, MARKED_TOKEN = (
    re.compile(rf"[^\W{ALONE}]+(?:[{MARKS}]+[^\W{ALONE}]*)*|[{ALONE}]{other}") for other in ("", r"|[^\w\s]")
)
IS_UNSEEN, IS_MARK, IS_EITHER = (re.compile(f"[{some}]") for some in (UNSEEN, MARKS, UNSEEN + MARKS))
SHINGLE, PERMUTATIONS, BANDS = 5, 128, 32
PRIME = numpy.uint64(0x9E3779B97F4A7C15)


class _Words(dict):
    """Word -> 64-bit hash (XXH3), cached; emptied at 2M words so that it cannot grow without bound."""

    def __missing__(self, word: str) -> int:
        if len(self) > 2_000_000:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


HASHES = _Words()


@lru_cache(maxsize=4)  # several steps, one after the other, ask for those of the same text
def tokens_of(text: str) -> list[str]:
    """The TOKENs of a text; the caller does not change the list."""
    if text.isascii():
        return OTHER_TOKEN.findall(text)
    text = as_seen(text)
    if IS_MARK.search(text):
        return MARKED_TOKEN.findall(text)
    return (TOKEN if IS_ALONE.search(text) else OTHER_TOKEN).findall(text)


def as_seen(text: str) -> str:
    """The text without characters that are not seen, and with accents and their letters as one character each."""
    if text.isascii() or not IS_EITHER.search(text):
        return text
    return unicodedata.normalize("NFC", IS_UNSEEN.sub("", text))


def split_words(text: str) -> list[re.Match]:
    """The WORDs of a text that is `as_seen`, with their places."""
    return list((MARKED_WORD if IS_MARK.search(text) else WORD).finditer(text))


@lru_cache(maxsize=4)
def words_of(text: str) -> list[str]:
    """The WORDs of a text in lower case; the caller does not change the list."""
    if text.isascii():
        return text.encode().translate(LOWER_WORDS).decode().split()
    text = as_seen(text).lower()
    return (MARKED_WORD if IS_MARK.search(text) else WORD).findall(text)


def word_hashes(text: str) -> numpy.ndarray:
    """uint64 hash of each lower-cased word: punctuation, whitespace and case make no difference."""
    return hashes_of(words_of(text))


def hashes_of(words: list[str]) -> numpy.ndarray:
    """uint64 hash of each of `words`."""
    return numpy.fromiter(map(HASHES.__getitem__, words), numpy.uint64, len(words))


def ngrams(words: numpy.ndarray, n: int) -> numpy.ndarray:
    """uint64 hash of each run of `n` word hashes; empty if there are fewer than `n`."""
    count = len(words) - n + 1
    if count < 1:
        return words[:0]
    found = words
    for size in range(2, n + 1):
        found = longer(found[: len(words) - size + 1], words[size - 1 :])
    return found


def longer(grams: numpy.ndarray, following: numpy.ndarray) -> numpy.ndarray:
    """Hashes of n-grams from those of (n - 1)-grams and the hashes of the words that follow: multiply, mix, add."""
    found = grams * PRIME
    found ^= found >> numpy.uint64(29)
    found += following
    return found


def shingles(words: numpy.ndarray, text: str) -> numpy.ndarray:
    """Hashes (uint64, sorted, unique) of the runs of 5 words; a shorter text is one shingle."""
    if len(words) >= SHINGLE:
        return different(ngrams(words, SHINGLE))
    return ngrams(words, len(words)) if len(words) else numpy.array([xxhash.xxh3_64_intdigest(text.encode())], numpy.uint64)


def different(hashes: numpy.ndarray) -> numpy.ndarray:
    """`hashes`, sorted, each once: numpy.unique at a third of its cost for arrays this small."""
    found = numpy.sort(hashes)
    keep = numpy.ones(len(found), bool)
    numpy.not_equal(found[1:], found[:-1], out=keep[1:])
    return found[keep]


def minhash(sets: list[numpy.ndarray]) -> numpy.ndarray:
    """MinHash sketches, uint32 [sets, 128] (rensa's R-MinHash, fixed seed), of sets of shingle hashes."""
    import rensa

    if not sets:
        return numpy.zeros((0, PERMUTATIONS), numpy.uint32)
    ends = numpy.cumsum([0, *map(len, sets)]).tolist()
    flat = numpy.ascontiguousarray(numpy.concatenate(sets))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, PERMUTATIONS, 42)
    return numpy.array(matrix.to_rows(), numpy.uint32)


def text_digest(text: str) -> bytes:
    """16-byte digest (XXH3) of a text; whitespace at its ends makes no difference."""
    return xxhash.xxh3_128_digest(text.strip().encode())
