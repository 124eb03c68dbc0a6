"""The name by which a card refers to a run's folder: without absolute paths of a machine, without secrets."""

import re
import unicodedata
from pathlib import Path, PurePath

from llmrecipes.manifest import ROOT, digest
from llmrecipes.secrets import scrub_secrets

ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:/[\w.+@-]+){2,}/?|~/[\w./+@-]+|\b[A-Za-z]:\\\\[\w\\\\.-]+")


def hide_paths(text: str) -> str:
    """`text` without absolute paths of a machine (only their last two parts are kept) and without secrets."""
    text = scrub_secrets(text).replace(f"{ROOT}/", "")
    return ABSOLUTE.sub(lambda match: "/".join(re.split(r"[\\\\/]", match[0].rstrip("/"))[-2:]), text)


def is_local(path: str | Path) -> bool:
    """Whether `path` is a folder or file on this machine (possibly moved since), not a Hub id."""
    parts = PurePath(path).parts
    return Path(path).exists() or len(parts) > 2 or parts[:1] == ("outputs",)


def repo_name(path: str | Path) -> str:
    """The repository name of a run's folder: experiment-stage; a Hub id is unchanged. A hub allows ASCII alone: accents go,
    and where other letters do, a digest tells such names apart."""
    if not is_local(path):
        return str(path)
    parts = PurePath(path).parts
    if len(parts) < 2 or ".." in parts:  # as push names it
        parts = Path(path).resolve().parts
    name = "-".join(parts[-2:])
    letters = [letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter)]
    if not "".join(letters).isascii():
        letters += f"-{digest(name)[:6]}"
    plain = re.sub(r"[^\w.-]", "-", "".join(letters), flags=re.ASCII)
    return re.sub(r"-{2,}|\.{2,}", "-", plain).strip("-./")


def loading_name(path: str | Path) -> str:
    """The argument of `from_pretrained` on the card: a relative folder unchanged (relative to where the run was started),
    with ./ if it could be read as a Hub id; an absolute one, which must not be on a card, as in repo_name."""
    pure = PurePath(path)
    if pure.is_absolute() or not is_local(path):
        return repo_name(path)
    return str(pure) if len(pure.parts) > 2 else f"./{pure}"
