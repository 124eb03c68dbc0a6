"""Gopher's rules (Rae et al. 2021, arXiv 2112.11446, section A.1 and table A1), for English and similar languages.

Words are split by `hashing.TOKEN`; datatrove 0.10.1 uses spaCy, which is ten times slower. Bounds and order are datatrove's.
"""

import re
from collections import Counter

import numpy

from llmrecipes.corpus.hashing import hashes_of, longer, tokens_of

STOP_WORDS = frozenset("the be to of and that have with".split())
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def gopher(text: str) -> tuple[str, str]:
    """Rules on length, on the shape of words and lines, and on stop words."""
    tokens = tokens_of(text)
    words = [token for token in tokens if len(token) > 1 or token.isalnum() or token == "_"]
    if not 50 <= len(words) <= 100_000:
        return text, "fewer than 50 words" if len(words) < 50 else "more than 100,000 words"
    mean = sum(map(len, words)) / len(words)
    if not 3 <= mean <= 10:
        return text, "mean length of words outside 3 to 10"
    if text.count("#") / len(tokens) > 0.1:
        return text, "more than 0.1 hashes a word"
    if (text.count("...") + text.count("…")) / len(tokens) > 0.1:
        return text, "more than 0.1 ellipses a word"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return text, "more than 90 % of lines begin with a bullet"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return text, "more than 30 % of lines end in an ellipsis"
    if sum(map(str.isalpha, words)) / len(tokens) < 0.8 and _with_a_letter(words) / len(tokens) < 0.8:
        return text, "less than 80 % of words with a letter"
    if len(STOP_WORDS.intersection(tokens)) < 2:
        return text, "fewer than 2 stop words"
    return text, ""


def gopher_repetition(text: str) -> tuple[str, str]:
    """Rules on repeated lines, paragraphs and n-grams; n-grams are compared by their hashes."""
    if not text.strip():
        return text, "nothing is left"
    if "\n" in text:
        for what, parts in (("paragraphs", re.split(r"\n{2,}", text.strip())), ("lines", re.split(r"\n+", text))):
            count, characters = _repeated(parts)
            if count / len(parts) > 0.3:
                return text, f"more than 30 % of {what} repeated"
            if characters / len(text) > 0.2:
                return text, f"repeated {what} are more than 20 % of the text"
    return text, _repeated_ngrams(text, tokens_of(text))


def _repeated_ngrams(text: str, tokens: list[str]) -> str:
    """The first rule on n-grams that a text breaks, or ""."""
    words, bounds = hashes_of(tokens), dict(TOP_NGRAMS) | dict(DUPLICATE_NGRAMS)
    starts = numpy.cumsum([0, *map(len, tokens)])
    # Where an (n - 1)-gram begins that occurs several times, and its hash: only there can such an n-gram begin.
    at, grams = numpy.arange(len(words)), words
    for n in range(2, min(10, len(words)) + 1):
        inside = numpy.searchsorted(at, len(words) - n, side="right")
        at = at[:inside]
        at, grams, first, most = _several(at, longer(grams[:inside], words[at + n - 1]))
        if n <= 4:
            if (starts[first + n] - starts[first] + n - 1) * most > bounds[n] * len(text):
                return f"the commonest {n}-gram is more than {bounds[n]:.0%} of the text"
        elif not len(at):
            break
        elif _duplicated(grams.tolist(), at.tolist(), starts, n) > bounds[n] * len(text):
            return f"repeated {n}-grams are more than {bounds[n]:.0%} of the text"
    return ""


def _several(at: numpy.ndarray, grams: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray, int, int]:
    """(`at` and `grams` of those that occur several times; where the commonest begins, the first of several; how often it
    occurs). at: where each of `grams` begins, ascending."""
    order = grams.argsort(kind="stable")
    found = grams[order]
    same = found[1:] == found[:-1]
    if not same.any():
        return at[:0], grams[:0], 0, 1
    borders = numpy.flatnonzero(numpy.concatenate([[True], ~same, [True]]))
    counts = borders[1:] - borders[:-1]
    most = int(counts.max())
    first = int(at[order[borders[:-1][counts == most]].min()])
    again = numpy.zeros(len(grams), bool)
    again[order[1:][same]] = again[order[:-1][same]] = True
    return at[again], grams[again], first, most


def _with_a_letter(words: list[str]) -> int:
    return sum(not word.isdigit() and any(map(str.isalpha, word)) for word in words)


def _repeated(parts: list[str]) -> tuple[int, int]:
    """(number of repetitions, their total characters)"""
    if len(set(parts)) == len(parts):
        return 0, 0
    counts = Counter(parts)
    again = [(count - 1, len(part)) for part, count in counts.items()]
    return sum(count for count, _ in again), sum(count * size for count, size in again)


def _duplicated(grams: list[int], at: list[int], starts: numpy.ndarray, n: int) -> int:
    """Characters in n-grams that occurred before, none counted twice.

    grams: hashes of those that occur several times. at: the words where they begin. starts: offset of each word.
    """
    seen, characters, free = set(), 0, 0
    for gram, begin in zip(grams, at, strict=True):
        if begin < free:
            continue
        if gram in seen:
            characters += int(starts[begin + n] - starts[begin])
            free = begin + n
        seen.add(gram)
    return characters
