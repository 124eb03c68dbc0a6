"""Counts of documents and words by step and reason, with samples; adding up parts gives the same in any order."""

import re
from dataclasses import dataclass, field

import xxhash

EXCERPT = 400  # characters of a sample


@dataclass
class Counts:
    """read, kept: [documents, words, bytes]. dropped: step -> reason -> [documents, words]. changed: kind -> count.
    samples: step -> reason -> [[sort key, id, excerpt]]. lengths: words (upper bound, a power of 2) -> documents kept."""

    most: int = 3
    read: list[int] = field(default_factory=lambda: [0, 0, 0])
    kept: list[int] = field(default_factory=lambda: [0, 0, 0])
    dropped: dict = field(default_factory=dict)
    changed: dict = field(default_factory=dict)
    samples: dict = field(default_factory=dict)
    lengths: dict = field(default_factory=dict)

    def drop(self, step: str, reason: str, words: int, name: str, text: str) -> None:
        reason = re.sub(r" at byte \d+( of (the line|a text))?$| \(.*\)$", "", reason)[:120] if step == "read" else reason
        entry = self.dropped.setdefault(step, {}).setdefault(reason, [0, 0])
        entry[0] += 1
        entry[1] += words
        self.show(step, reason, name, text)

    def keep(self, words: int, size: int) -> None:
        for i, value in enumerate((1, words, size)):
            self.kept[i] += value
        bound = str(1 << max(0, words - 1).bit_length())
        self.lengths[bound] = self.lengths.get(bound, 0) + 1

    def show(self, step: str, reason: str, name: str, text: str) -> None:
        """Keeps `text` as a sample if its (pseudo-random) number is among the smallest: a uniform draw in any order."""
        samples = self.samples.setdefault(step, {}).setdefault(reason, [])
        samples.append([xxhash.xxh3_64_intdigest(name.encode()) >> 11, name[-200:], text[:EXCERPT]])
        samples.sort()
        del samples[self.most :]

    def add(self, other: dict) -> None:
        """Adds another part's counts, given as by `asdict`."""
        for i in range(3):
            self.read[i] += other["read"][i]
            self.kept[i] += other["kept"][i]
        for mine, theirs in ((self.changed, other["changed"]), (self.lengths, other["lengths"])):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value
        for step, reasons in other["dropped"].items():
            for reason, (documents, words) in reasons.items():
                entry = self.dropped.setdefault(step, {}).setdefault(reason, [0, 0])
                entry[0] += documents
                entry[1] += words
        for step, reasons in other["samples"].items():
            for reason, samples in reasons.items():
                mine = self.samples.setdefault(step, {}).setdefault(reason, [])
                mine[:] = sorted([*mine, *samples])[: self.most]
