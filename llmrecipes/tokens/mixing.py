"""Which block of which source is the n-th sample of training: a pure function of sizes, weights, seed and n.

Samples come in cycles in which each source has exactly its share. Within a cycle, a source with c draws has one at a random
position in each of c equal stretches (stratified sampling), so any part of training has the right shares too, up to about
one sample per source. In each epoch, a source's draws go through all its blocks in a new keyed permutation.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from llmrecipes.config import InputError
from llmrecipes.tokens.permutation import key_of, permute, scramble

CYCLES = (1_000, 10_000, 100_000)  # samples; the first length that gives every share within 1 % of itself is used
SAMPLES_AT_ONCE = 16_000  # computed together and cached


class Mixture:
    """The order of the samples.

    Args:
        sizes: number of blocks of each source; blocks are numbered through all sources.
        counts: for each phase, the samples of each source in a cycle (see `share_out`); None: every block once per epoch,
            whatever its source.
        ends: for each phase, the first sample after it; the last phase has no end.
    """

    def __init__(self, sizes: Sequence[int], counts: list[np.ndarray] | None, ends: Sequence[int], seed: int):
        self.sizes, self.seed = np.array(sizes, np.int64), seed
        self.first_blocks = np.concatenate([[0], np.cumsum(self.sizes)])
        self.weighted = counts is not None
        # Without weights, all blocks are treated as one source.
        self._sizes = self.sizes if self.weighted else self.sizes.sum(keepdims=True)
        self.counts = counts if self.weighted else [np.array([CYCLES[0]])]
        self.starts = [0, *ends[:-1]]
        self._kept: dict[tuple[int, int], np.ndarray] = {}
        self.before = [np.zeros(len(self._sizes), np.int64)]  # draws of each source before each phase
        for phase, end in enumerate(ends[:-1]):
            self.before.append(self.before[-1] + self._drawn_in_phase(phase, end - self.starts[phase]))

    def locate(self, samples: Sequence[int]) -> np.ndarray:
        """Block numbers (N,) of the `samples`."""
        samples = np.asarray(samples, np.int64)
        blocks, left = np.empty(len(samples), np.int64), np.arange(len(samples))
        while len(left):  # stretch by stretch; a batch rarely spans more than one
            phase, part, begin, end = self._stretch(int(samples[left[0]]))
            within = (samples[left] >= begin) & (samples[left] < end)
            here, left = left[within], left[~within]
            blocks[here] = self._part(phase, part)[samples[here] - begin]
        return blocks

    def drawn(self, samples: int) -> np.ndarray:
        """How many of the first `samples` come from each source (S,); without weights, from all together (1,)."""
        phase = int(np.searchsorted(self.starts, samples, side="right")) - 1
        return self.before[phase] + self._drawn_in_phase(phase, samples - self.starts[phase])

    def blocks_of(self, source: int, first: int, last: int) -> np.ndarray:
        """Block numbers of draws `first` to `last` - 1 of a source (without weights: of all sources together)."""
        draws, size = np.arange(first, last, dtype=np.int64), int(self._sizes[source])
        keys = key_of(self.seed, source, draws // size)
        return permute(draws % size, size, keys) + (self.first_blocks[source] if self.weighted else 0)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": {}}

    def _at_once(self, phase: int) -> int:
        cycle = int(self.counts[phase].sum())
        return max(1, SAMPLES_AT_ONCE // cycle) * cycle

    def _stretch(self, sample: int) -> tuple[int, int, int, int]:
        """(phase, part of the phase, first sample of the part, first sample after it) of the part that contains `sample`."""
        phase = bisect_right(self.starts, sample) - 1
        size = self._at_once(phase)
        part = (sample - self.starts[phase]) // size
        begin = self.starts[phase] + part * size
        return phase, part, begin, min([begin + size, *self.starts[phase + 1 : phase + 2]])

    def _part(self, phase: int, part: int) -> np.ndarray:
        """Blocks of the samples in the `part`-th stretch (a number of whole cycles) of a phase."""
        if (phase, part) in self._kept:
            return self._kept[phase, part]
        counts, cycles = self.counts[phase], self._at_once(phase) // int(self.counts[phase].sum())
        numbers = np.arange(part * cycles, (part + 1) * cycles)
        sources, within = self._arrange(phase, numbers)
        draws = self.before[phase][sources] + numbers[:, None] * counts[sources] + within
        sources, draws = sources.ravel(), draws.ravel()
        blocks = np.empty(len(sources), np.int64)
        for source in np.flatnonzero(counts):
            of_it, size = sources == source, int(self._sizes[source])
            keys = key_of(self.seed, source, draws[of_it] // size)
            blocks[of_it] = permute(draws[of_it] % size, size, keys)
        if self.weighted:
            blocks += self.first_blocks[sources]
        while len(self._kept) > 2:
            self._kept.pop(next(iter(self._kept)))
        self._kept[phase, part] = blocks
        return blocks

    def _arrange(self, phase: int, cycles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each sample (cycles, samples): its source, and its number among that source's draws in the cycle. Draw i of c
        is sorted by (i + uniform(0, 1)) / c."""
        counts = self.counts[phase]
        sources = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = key_of(self.seed, phase, cycles, len(self._sizes))[:, None] + np.arange(len(sources), dtype=np.uint64)
        jitter = (scramble(keys) >> np.uint64(11)).astype(np.float64) / (1 << 53)
        order = np.argsort((within + jitter) / counts[sources], axis=1, kind="stable")
        return sources[order], within[order]

    def _drawn_in_phase(self, phase: int, samples: int) -> np.ndarray:
        counts = self.counts[phase]
        whole, rest = divmod(samples, int(counts.sum()))
        sources, _ = self._arrange(phase, np.array([whole]))
        return whole * counts + np.bincount(sources[0, :rest], minlength=len(counts))


def share_out(weights: np.ndarray, samples: int, room: np.ndarray | None = None) -> np.ndarray:
    """Samples (S,) of each source in a cycle, as close to `weights` (S,) as whole numbers allow.

    room: blocks (S,) that may still be drawn from each source; what one has no room for goes to the others in proportion
    (UniMax, Chung et al. 2023). Without it the cycle does not depend on `samples`, the length of the whole phase.

    Raises:
        InputError: there is no room for `samples`, or a share is too small.
    """
    shares = weights / weights.sum()
    for length in CYCLES:
        num_cycles = -(-samples // length)
        if room is None:
            limits = np.where(shares > 0, length, 0)
        else:  # a length of which the phase is a multiple
            length = -(-samples // num_cycles)
            limits = np.where(shares > 0, np.minimum(room / num_cycles, length), 0)
        counts, wanted = _whole_numbers(shares, length, limits)
        if counts.sum() == length and (abs(counts - wanted) <= 0.01 * wanted).all():
            break
    if counts.sum() < length:
        have = counts.sum() * num_cycles
        raise InputError(
            f"max_epochs: the sources have room for {have:,} of the {samples:,} blocks that the steps want; "
            "raise it, lower max_steps or add text"
        )
    if room is None and (counts[shares > 0] == 0).any():
        raise InputError(
            f"weight: a share below 1 in {length:,} is less than one sample of a cycle; raise it or leave the source out"
        )
    return counts


def _whole_numbers(shares: np.ndarray, total: int, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`total` split in proportion to `shares`, none above its limit, rounded by largest remainders; the same before
    rounding); sums to less than `total` if the limits, which need not be whole, allow no more."""
    full = limits == 0
    while True:
        rest = np.where(full, 0, shares)
        left = total - limits[full].sum()
        wanted = np.where(full, limits, rest / max(rest.sum(), 1e-300) * left)
        over = wanted > limits
        if not over.any():
            break
        full |= over
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    order = np.argsort(counts - wanted, kind="stable")
    while counts.sum() < total and (counts + 1 <= limits).any():
        for source in order:
            if counts.sum() < total and counts[source] + 1 <= limits[source]:
                counts[source] += 1
    return counts, wanted
