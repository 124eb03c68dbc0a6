"""A list of words or phrases of the user's: a document with any of them is dropped."""

import re
from pathlib import Path

from llmrecipes.config import InputError

WORD = re.compile(r"\w+")


def load_blocked(file: str) -> tuple[frozenset[str], re.Pattern | None]:
    """(single words, phrases) of a file with one a line, in small letters; # begins a comment."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"blocked_words: {file} cannot be read ({error})") from None
    terms = [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]
    if not terms:
        raise InputError(f"blocked_words: {file} holds no word")
    words = frozenset(term for term in terms if WORD.fullmatch(term))
    phrases = [re.escape(term) for term in terms if term not in words]
    return words, re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)") if phrases else None


def without_blocked(blocked: tuple[frozenset[str], re.Pattern | None], text: str) -> tuple[str, str]:
    words, phrases = blocked
    small = text.lower()
    if not words.isdisjoint(WORD.findall(small)) or phrases and phrases.search(small):
        return text, "holds a blocked word"
    return text, ""
