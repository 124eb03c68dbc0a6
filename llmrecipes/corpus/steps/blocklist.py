"""The user's list of words or phrases: a document with any of them is dropped."""

import re
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.hashing import ALONE

WORD = re.compile(r"\w+")
WITHOUT_BLANKS = re.compile(f"[{ALONE}]")


def load_blocked(file: str) -> tuple[frozenset[str], re.Pattern | None]:
    """(single words, phrases), lower-cased, of a file with one per line; # begins a comment."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"blocked_words: {file} cannot be read ({error})") from None
    terms = [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]
    if not terms:
        raise InputError(f"blocked_words: {file} holds no word")
    words = frozenset(term for term in terms if WORD.fullmatch(term) and not WITHOUT_BLANKS.search(term))
    phrases = [_bounded(term) for term in terms if term not in words]
    return words, re.compile("|".join(phrases)) if phrases else None


def _bounded(term: str) -> str:
    """A pattern for `term` with word boundaries, at each end whose script separates words by spaces."""
    begin = "" if WITHOUT_BLANKS.match(term[0]) else r"(?<!\w)"
    return begin + re.escape(term) + ("" if WITHOUT_BLANKS.match(term[-1]) else r"(?!\w)")


def without_blocked(blocked: tuple[frozenset[str], re.Pattern | None], text: str) -> tuple[str, str]:
    words, phrases = blocked
    small = text.lower()
    if not words.isdisjoint(WORD.findall(small)) or phrases and phrases.search(small):
        return text, "holds a blocked word"
    return text, ""
