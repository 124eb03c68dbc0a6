"""Gopher's rules (Rae et al. 2021, arXiv 2112.11446, section A.1 and table A1), for English and its likes.

Words are split by `hashing.TOKEN`; datatrove 0.10.1 asks spaCy, ten times slower. Bounds and order are datatrove's.
"""

import re
from collections import Counter

from llmrecipes.corpus.hashing import TOKEN

STOP_WORDS = frozenset("the be to of and that have with".split())
TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def gopher(text: str) -> tuple[str, str]:
    """Length, shape of words and lines, stop words."""
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
    """Lines, paragraphs and n-grams that come again."""
    if not text.strip():
        return text, "nothing is left"
    for what, parts in (("paragraphs", re.split(r"\n{2,}", text.strip())), ("lines", re.split(r"\n+", text))):
        count, characters = _repeated(parts)
        if count / len(parts) > 0.3:
            return text, f"more than 30 % of {what} repeated"
        if characters / len(text) > 0.2:
            return text, f"repeated {what} are more than 20 % of the text"
    tokens = TOKEN.findall(text)
    names: dict[str, int] = {}
    ids = [names.setdefault(token, len(names)) for token in tokens]
    sizes = [len(token) for token in tokens]
    for n, bound in TOP_NGRAMS:
        if _top(ids, sizes, n) > bound * len(text):
            return text, f"the commonest {n}-gram is more than {bound:.0%} of the text"
    if len(set(zip(*(ids[i:] for i in range(5)), strict=False))) == max(0, len(ids) - 4):
        return text, ""  # where no five words come again, no six do
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    for n, bound in DUPLICATE_NGRAMS:
        if _duplicated(ids, starts, n) > bound * len(text):
            return text, f"repeated {n}-grams are more than {bound:.0%} of the text"
    return text, ""


def _repeated(parts: list[str]) -> tuple[int, int]:
    """(how many come again, their characters)"""
    if len(set(parts)) == len(parts):
        return 0, 0
    counts = Counter(parts)
    again = [(count - 1, len(part)) for part, count in counts.items()]
    return sum(count for count, _ in again), sum(count * size for count, size in again)


def _top(ids: list[int], sizes: list[int], n: int) -> int:
    """Characters of the commonest n-gram, blanks between its words included, times how often it stands there."""
    counts = Counter(zip(*(ids[i:] for i in range(n)), strict=False))
    if not counts:
        return 0
    gram, count = counts.most_common(1)[0]
    size_of = dict(zip(ids, sizes, strict=True))
    return (sum(size_of[i] for i in gram) + n - 1) * count


def _duplicated(ids: list[int], starts: list[int], n: int) -> int:
    """Characters of n-grams that stood there before, none counted twice."""
    seen, characters, i = set(), 0, 0
    grams = list(zip(*(ids[k:] for k in range(n)), strict=False))
    while i < len(grams):
        if grams[i] in seen:
            characters += starts[i + n] - starts[i]
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return characters
