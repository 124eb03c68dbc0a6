"""The user's list of words or phrases: a document with any of them is dropped."""

import re
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.hashing import ALONE, words_of

WORD = re.compile(r"\w+")
WITHOUT_BLANKS = re.compile(f"[{ALONE}]")


Blocked = tuple[frozenset[str], frozenset[str], re.Pattern | None]


def load_blocked(file: str) -> Blocked:
    """(single words, first words of the phrases, phrases), lower-cased, of a file with one per line; # begins a comment.

    A text without any of the first words, of which "" is in every text, holds no phrase.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"blocked_words: {file} cannot be read ({error})") from None
    terms = [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]
    if not terms:
        raise InputError(f"blocked_words: {file} holds no word")
    words = frozenset(term for term in terms if WORD.fullmatch(term) and not WITHOUT_BLANKS.search(term))
    phrases = [term for term in terms if term not in words]
    firsts = frozenset(_first_word(term) for term in phrases)
    return words, firsts, re.compile("|".join(map(_bounded, phrases))) if phrases else None


def _first_word(phrase: str) -> str:
    """The whole word that every text with the phrase holds; "" if it need not be a whole one there."""
    found = re.match(r"(\w+)\W", phrase)
    return found[1] if found and not WITHOUT_BLANKS.match(phrase[0]) else ""


def _bounded(term: str) -> str:
    """A pattern for `term` with word boundaries, at each end whose script separates words by spaces."""
    begin = "" if WITHOUT_BLANKS.match(term[0]) else r"(?<!\w)"
    return begin + re.escape(term) + ("" if WITHOUT_BLANKS.match(term[-1]) else r"(?!\w)")


def without_blocked(blocked: Blocked, text: str) -> tuple[str, str]:
    """The step: (text, why it is dropped or "")."""
    words, firsts, phrases = blocked
    found = words_of(text) if text.isascii() else WORD.findall(text.lower())
    if not words.isdisjoint(found):
        return text, "holds a blocked word"
    if phrases and ("" in firsts or not firsts.isdisjoint(found)) and phrases.search(text.lower()):
        return text, "holds a blocked word"
    return text, ""
