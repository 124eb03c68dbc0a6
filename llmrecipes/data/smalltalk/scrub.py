"""Cleaning of real text: personal data, profanity, exact and near duplicates. Pure: texts in, texts out."""

import re
from collections.abc import Iterable, Iterator

EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
# Nine to fifteen digits with at most two separators between neighbours; years and prices are shorter, decimals left out.
PHONE = re.compile(r"(?<![\w.])(?!\d+\.\d{5})\+?\(?\d(?:[ ()/.-]{0,2}\d){8,14}(?![\w.]?\d)")
LINK = re.compile(r"(?:https?://|www\.)\S+")
# Stems that begin a word. A short list errs towards keeping; it does not measure toxicity.
PROFANE = re.compile(
    r"\b(?:fuck|shit|bullshit|bitch|cunt|nigg|fagg|dick\b|dickhead|pussy|asshole|bastard|whore|slut|cock\b|cum\b|porn"
    r"|rape|rapist|masturbat|penis|vagina|blowjob|boner|horny|wank|twat|retard|motherf|wtf|stfu|milf|nude)",
    re.IGNORECASE,
)


def scrub(text: str) -> str:
    """`text` with e-mail addresses, phone-like numbers and links replaced by [email], [phone] and [link]."""
    return PHONE.sub("[phone]", EMAIL.sub("[email]", LINK.sub("[link]", text)))


def is_clean(text: str) -> bool:
    """No profanity, no e-mail address, phone-like number or link: fit to be said by the model."""
    return not PROFANE.search(text) and scrub(text) == text


def collapse(text: str) -> str:
    """`text` with runs of whitespace as one space and more than one empty line as one."""
    lines = (re.sub(r"[ \t\u00a0\u200b]+", " ", line).strip() for line in text.replace("\r", "").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def chat_key(row: dict) -> str:
    """Identifies a chat of chitchat-dataset by its beginning."""
    return "\n".join(message["text"] for turn in row["messages"] for message in turn)[:1000]


def without_near_duplicates(rows: Iterable[dict], column: str = "text", threshold: float = 0.7) -> Iterator[dict]:
    """`rows` whose `column` shares fewer than `threshold` of its three-word shingles with every earlier one.

    Estimated Jaccard similarity from 128 MinHash permutations, candidates from locality-sensitive hashing (Broder
    1997); with 16 bands of 8, pairs at 0.7 are found with probability 0.6, at 0.8 0.95, from 0.9 practically always.
    """
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=threshold, num_perm=128, num_bands=16)
    kept = []
    for row in rows:
        words = row[column].lower().split()
        sketch = RMinHash(num_perm=128, seed=42)
        sketch.update([" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))])
        if not any(kept[i].jaccard(sketch) >= threshold for i in lsh.query(sketch)):
            lsh.insert(len(kept), sketch)
            kept.append(sketch)
            yield row
