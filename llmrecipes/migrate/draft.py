"""A config being translated, and the simplest translations of one old key.

A translation is a function of the draft, the old key and its value: it sets our keys, and records what is lost or needless.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmrecipes.keys.renamed import GONE, RENAMES
from llmrecipes.keys.values import shown

Translation = Callable[["Draft", str, Any], None]


@dataclass
class Draft:
    """A config being built. `lost`: old key -> why it could not be translated; `needless`: old keys that are our
    defaults."""

    old: dict[str, Any]
    tool: str
    stage: str
    keys: set[str]
    values: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    needless: list[str] = field(default_factory=list)
    template: str | None = None

    def set(self, key: str, value: Any) -> None:
        kept = self.values.setdefault(key, value)
        if kept != value:  # two old keys for one of ours: the first counts, and the reader must know
            self.lost[f"{key}: {shown(value)}"] = f"the config gives it twice; {shown(kept)} is kept"

    def environment(self, name: str, value: Any) -> None:
        self.values.setdefault("env", {})[name] = str(value)


def by_name(draft: Draft, key: str, value: Any) -> None:
    """Writes the value under its key, or under that key's new name."""
    if key in draft.keys:
        draft.set(key, value)
    elif RENAMES.get(key) in draft.keys:
        draft.set(RENAMES[key], value)
    else:
        draft.lost[key] = GONE.get(key, f"no key of recipes/{draft.stage}.py means the same")


def needless(draft: Draft, key: str, value: Any) -> None:
    """Leaves out a key that has no effect here."""
    draft.needless.append(key)


def read_elsewhere(draft: Draft, key: str, value: Any) -> None:
    """Does nothing: another key's translation reads this one."""


def lost(why: str) -> Translation:
    """A translation that leaves out the key and says why."""
    return lambda draft, key, value: draft.lost.__setitem__(key, why)


def to(new: str, change: Callable = lambda value: value) -> Translation:
    """A translation that writes the value, passed through `change`, under the key `new`."""
    return lambda draft, key, value: draft.set(new, change(value))


def when_on(new: str, new_value: Any) -> Translation:
    """An old switch: if on, it becomes `new: new_value`; if off, it is our default."""
    return lambda draft, key, value: draft.set(new, new_value) if value else draft.needless.append(key)
