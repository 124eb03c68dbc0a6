"""Gopher's rules (Rae et al. 2021, arXiv 2112.11446, section A.1 and table A1), for English and similar languages.

Words are split by `hashing.TOKEN`; datatrove 0.10.1 uses spaCy, which is ten times slower. Bounds and order are datatrove's.
"""

import re
from collections import Counter

import numpy

from llmrecipes.corpus.hashing import HASHES, TOKEN, longer

STOP_WORDS = frozenset("the be to of and that have with".split())
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def gopher(text: str) -> tuple[str, str]:
    """Rules on length, on the shape of words and lines, and on stop words."""
    tokens = TOKEN.findall(text)
    words = [token for token in tokens if token[0].isalnum() or token[0] == "_"]
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
    if sum(not token.isdigit() and any(map(str.isalpha, token)) for token in words) / len(tokens) < 0.8:
        return text, "less than 80 % of words with a letter"
    if len(STOP_WORDS.intersection(tokens)) < 2:
        return text, "fewer than 2 stop words"
    return text, ""


def gopher_repetition(text: str) -> tuple[str, str]:
    """Rules on repeated lines, paragraphs and n-grams; n-grams are compared by their hashes."""
    if not text.strip():
        return text, "nothing is left"
    for what, parts in (("paragraphs", re.split(r"\n{2,}", text.strip())), ("lines", re.split(r"\n+", text))):
        count, characters = _repeated(parts)
        if count / len(parts) > 0.3:
            return text, f"more than 30 % of {what} repeated"
        if characters / len(text) > 0.2:
            return text, f"repeated {what} are more than 20 % of the text"
    tokens = TOKEN.findall(text)
    words = numpy.fromiter(map(HASHES.__getitem__, tokens), numpy.uint64, len(tokens))
    starts = numpy.cumsum([0, *map(len, tokens)])
    grams, bounds = words, dict(TOP_NGRAMS) | dict(DUPLICATE_NGRAMS)
    for n in range(2, 11):
        grams = longer(grams, words, n)
        if not len(grams):
            break
        _, first, inverse, counts = numpy.unique(grams, return_index=True, return_inverse=True, return_counts=True)
        bound = bounds[n]
        if n <= 4:
            at = int(first[counts == counts.max()].min())  # the first of several
            if (starts[at + n] - starts[at] + n - 1) * int(counts.max()) > bound * len(text):
                return text, f"the commonest {n}-gram is more than {bound:.0%} of the text"
        elif len(counts) == len(grams):
            break  # if no 5-gram is repeated, no 6-gram is
        elif _duplicated(inverse, numpy.flatnonzero(counts[inverse] > 1), starts, n) > bound * len(text):
            return text, f"repeated {n}-grams are more than {bound:.0%} of the text"
    return text, ""


def _repeated(parts: list[str]) -> tuple[int, int]:
    """(number of repetitions, their total characters)"""
    if len(set(parts)) == len(parts):
        return 0, 0
    counts = Counter(parts)
    again = [(count - 1, len(part)) for part, count in counts.items()]
    return sum(count for count, _ in again), sum(count * size for count, size in again)


def _duplicated(names: numpy.ndarray, again: numpy.ndarray, starts: numpy.ndarray, n: int) -> int:
    """Characters in n-grams that occurred before, none counted twice.

    names: a number for each n-gram. again: positions of those that occur several times. starts: offset of each word.
    """
    seen, characters, free = set(), 0, 0
    for at, name in zip(again.tolist(), names[again].tolist(), strict=True):
        if at < free:
            continue
        if name in seen:
            characters += int(starts[at + n] - starts[at])
            free = at + n
        seen.add(name)
    return characters
