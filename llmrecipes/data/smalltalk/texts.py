"""Pretraining documents: rows of one public source -> {"text", "key"}, scrubbed and without near duplicates.

`key` names the document that a piece was cut from, so that a held-out slice holds out whole documents.
"""

import re
from collections.abc import Iterable, Iterator

from llmrecipes.data.smalltalk.scrub import chat_key, collapse, is_clean, scrub, without_near_duplicates

MAX_CHARACTERS = 4000  # longer documents are cut between paragraphs: a share is then never one huge book


def chats(rows: Iterable[dict]) -> Iterator[dict]:
    """Human-human chats of chitchat-dataset: one document a chat, a line a turn, speakers called A and B.

    Messages with profanity, e-mail addresses, phone-like numbers or links are left out, as are chats of under 4 turns.
    """
    for row in rows:
        turns = []
        for turn in row["messages"]:
            said = " ".join(text for message in turn if is_clean(text := collapse(message["text"])) and text)
            if said:
                turns.append((turn[0]["sender"], " ".join(said.split())))
        speakers = list(dict.fromkeys(sender for sender, _ in turns))
        if len(turns) >= 4 and len(speakers) == 2:
            text = "\n".join(f"{'AB'[speakers.index(sender)]}: {said}" for sender, said in turns)
            yield {"text": text, "key": chat_key(row)}


def passages(rows: Iterable[dict]) -> Iterator[dict]:
    """Encyclopedia passages of BoolQ and QuAC, without BoolQ's "Title -- " and QuAC's CANNOTANSWER."""
    documents = (re.sub(r"^.{1,120}? -- ", "", row["passage"]).replace("CANNOTANSWER", "") for row in rows)
    yield from _documents(documents)


def stories(rows: Iterable[dict]) -> Iterator[dict]:
    """Plot summaries of NarrativeQA."""
    yield from _documents(row["passage"] for row in rows)


def documents(rows: Iterable[dict]) -> Iterator[dict]:
    """News articles and web pages: column `text` or `document`."""
    yield from _documents(row.get("text") or row["document"] for row in rows)


def abstracts(rows: Iterable[dict]) -> Iterator[dict]:
    """Abstracts of papers (PubMedQA), without the "Context (1):" that numbers their paragraphs."""
    yield from _documents(re.sub(r"Context \(\d+\): ", "", row["passage"]) for row in rows)


def forum(rows: Iterable[dict]) -> Iterator[dict]:
    """Questions with their answer, as a forum shows them (FiQA: personal finance on StackExchange)."""
    for row in rows:
        answer = row["answer"].strip().strip('"').replace('""', '"')
        yield from _pieces(scrub(collapse(f"Question: {row['question']}\n\nAnswer: {answer}")), key=row["question"])


def plays(rows: Iterable[dict]) -> Iterator[dict]:
    """Plays and poems, cut into scenes (shakespeare)."""
    for row in rows:
        for scene in re.split(r"\n(?=\s*(?:ACT|Act|SCENE|Scene) [IVXL]+\b)", row["text"]):
            if len(scene) > 200:
                yield from _pieces(collapse(scene), key=scene[:200])


def code(rows: Iterable[dict]) -> Iterator[dict]:
    """Python files, cut at empty lines; generated tables (encodings, numbers, very long lines) left out."""
    for row in rows:
        lines = [line.rstrip() for line in row["text"].strip().split("\n")]
        is_table = max(map(len, lines)) > 300 or sum(line.strip()[:1].isdigit() for line in lines) > len(lines) / 2
        if len(lines) >= 5 and not is_table and not row["file"].startswith(("encodings/", "pydoc_data/")):
            yield from _pieces(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)), key=row["file"])


def _documents(texts: Iterable[str]) -> Iterator[dict]:
    rows = ({"text": scrub(collapse(_repair(text)))} for text in dict.fromkeys(texts))
    for row in without_near_duplicates(row for row in rows if len(row["text"]) >= 200):
        yield from _pieces(row["text"], key=row["text"][:200])


def _repair(text: str) -> str:
    """`text` with UTF-8 that was once read as Latin-1 put right ("\u00e2\u0080\u0094" is a dash)."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _pieces(text: str, key: str) -> Iterator[dict]:
    """`text` cut between paragraphs (else lines) into pieces of about MAX_CHARACTERS."""
    piece = ""
    for paragraph in re.split(r"(?<=\n)\n" if "\n\n" in text else r"(?<=\n)", text):
        if piece and len(piece) + len(paragraph) > MAX_CHARACTERS:
            yield {"text": piece.strip("\n"), "key": key}
            piece = ""
        piece += paragraph + ("\n" if "\n\n" in text else "")
    if piece.strip():
        yield {"text": piece.strip("\n"), "key": key}
