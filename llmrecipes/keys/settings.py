"""A run's settings as given, before any dataclass is built from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llmrecipes.keys import UNKNOWN, Key

Problems = Iterator[tuple[str, str]]
COMMAND_LINE = "command line"  # the place of settings given there


@dataclass
class Settings:
    """Values from YAML and command line, the place of each, and all valid keys with their defaults."""

    values: dict[str, Any]
    where: dict[str, str]
    keys: dict[str, Key]
    has_unknown_keys: bool = False  # one may be a misspelling of a key that seems missing
    refused: set[str] = field(default_factory=set)  # keys with invalid values; what depends on them is unknown
    in_yaml: dict[str, Any] = field(default_factory=dict)  # the YAML's values, those that the command line overrides too
    dropped: set[str] = field(default_factory=set)  # keys of the YAML that the command line makes void

    def __getitem__(self, key: str) -> Any:
        """The value of `key`, given or default; None for a key that this stage does not have."""
        if key in self.values:
            return self.values[key]
        default = self.keys[key].default if key in self.keys else None
        return None if default is UNKNOWN else default

    def given(self, key: str) -> bool:
        return self.values.get(key) is not None

    @property
    def trains(self) -> bool:
        return "per_device_train_batch_size" in self.keys

    def lines(self, problems: Iterable[tuple[str, str]]) -> list[str]:
        """A line per problem, with the key's location; none for consequences of a refused value."""
        return [
            f"{self.where[key]}: {key}: {text}" if key in self.where else f"{key}: {text}"
            for key, text in problems
            if not any(f"`{refused}`" in text or f"`{refused}: " in text or refused == key for refused in self.refused)
        ]
