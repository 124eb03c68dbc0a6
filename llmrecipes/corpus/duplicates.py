"""Second phase: which documents are dropped because of others.

Near-duplicates (Broder 1997; Lee et al. 2022, arXiv 2107.06499): locality-sensitive hashing of MinHash sketches finds
candidates, the exact Jaccard similarity J of their shingles decides. Entry i of two sketches is equal with probability J, so
two documents share all 4 values of at least one of the 32 bands with probability 1 - (1 - J⁴)³²: 99.98 % at J = 0.7,
87 % at 0.5, 23 % at 0.3. A document is dropped if an earlier one that is kept is similar enough. "Earlier" is the order of
sources, files and rows, whoever runs the tasks, so that every run keeps the same documents.
"""

from pathlib import Path

import numpy

from llmrecipes.corpus.contamination import load_items
from llmrecipes.corpus.hashing import BANDS, PERMUTATIONS
from llmrecipes.corpus.work import EVALUATION, Work, whole_file, whole_folder

ROWS = PERMUTATIONS // BANDS
WINDOW = 64  # among documents that share a band, each is compared with the first and with the 64 before it
CHUNK = 1 << 16  # pairs at a time
# About five standard errors of MinHash's estimate, sqrt(0.7 * 0.3 / 128) = 0.04: where the estimate is further below the
# threshold, the exact similarity is not computed.
MARGIN = 0.2
KEPT, EXACT, NEAR, CONTAMINATED_NEAR, CONTAMINATED = range(5)


def index_parts(work: Work) -> None:
    """Joins the sketches of all parts, and finds documents that repeat an earlier one exactly. A single task."""
    folder = work.root / "index"
    if folder.exists():
        return
    with whole_folder(folder) as temporary:
        ends = numpy.cumsum([0] + [len(_load(work, number, "words")) for number in work.numbers])
        numpy.save(temporary / "starts.npy", ends)
        exact, equal, items = numpy.zeros(ends[-1], bool), numpy.zeros((0, 2), numpy.int64), _num_items(work, ends)
        if work.args.exact_duplicates:
            digests = numpy.concatenate([_load(work, number, "digests") for number in work.numbers] or [exact.reshape(0, 2)])
            order = numpy.lexsort((numpy.arange(len(digests)), digests[:, 1], digests[:, 0]))
            same = numpy.r_[False, (digests[order[1:]] == digests[order[:-1]]).all(axis=1)][: len(order)]
            exact[order[same]] = True
            exact[:items] = False
            first = order[numpy.maximum.accumulate(numpy.where(same, 0, numpy.arange(len(order))))]  # of its equals
            equal = numpy.stack([order, first], axis=1)[(first < items) & (order >= items)]
        numpy.save(temporary / "exact.npy", exact)
        numpy.save(temporary / "equal_items.npy", equal)
        if work.args.near_duplicates is not None:
            _join(work, temporary, ends[-1])


def _num_items(work: Work, starts: numpy.ndarray) -> int:
    """Number of documents at the beginning that are evaluation items."""
    return int(starts[1]) if EVALUATION in work.numbers else 0


def _load(work: Work, number: int, name: str) -> numpy.ndarray:
    return numpy.load(work.cleaned(number) / f"{name}.npy")


def _join(work: Work, folder: Path, count: int) -> None:
    matrix = numpy.lib.format.open_memmap(folder / "minhash.npy", "w+", numpy.uint32, (max(1, int(count)), PERMUTATIONS))
    shingle_ends, at, offset = [numpy.zeros(1, numpy.int64)], 0, 0
    with (folder / "shingles.u32").open("wb") as joined:
        for number in work.numbers:
            own = numpy.load(work.cleaned(number) / "minhash.npy", mmap_mode="r")
            matrix[at : at + len(own)] = own
            at += len(own)
            ends = _load(work, number, "ends")
            shingle_ends.append(ends + offset)
            offset += int(ends[-1]) if len(ends) else 0
            with (work.cleaned(number) / "shingles.u32").open("rb") as part:
                while block := part.read(1 << 22):
                    joined.write(block)
    matrix.flush()
    numpy.save(folder / "ends.npy", numpy.concatenate(shingle_ends))


def find_pairs(work: Work, band: int) -> None:
    """Finds pairs (later, earlier) that are similar enough and share `band` but no band before it. One task per band."""
    file = work.pairs(band)
    if file.exists():
        return
    folder = work.root / "index"
    matrix = numpy.load(folder / "minhash.npy", mmap_mode="r")
    alive = numpy.flatnonzero(~numpy.load(folder / "exact.npy"))
    found = []
    if len(alive):
        similar = _Similarity(folder, work.args.near_duplicates)
        for candidates in _candidates(matrix, alive, band):
            found.append(similar.pairs(matrix, candidates, band))
    with whole_file(file) as temporary, temporary.open("wb") as out:
        numpy.save(out, numpy.concatenate([numpy.zeros((0, 2), numpy.int64), *found]))


def _candidates(matrix: numpy.ndarray, alive: numpy.ndarray, band: int):
    """Chunks [k, 2] of pairs (later, earlier) of `alive` documents that agree in the band."""
    keys = numpy.ascontiguousarray(matrix[:, band * ROWS : (band + 1) * ROWS])[alive].astype(numpy.uint64)
    mixed = keys[:, 0]
    for column in range(1, ROWS):
        mixed = (mixed ^ (mixed >> numpy.uint64(29))) * numpy.uint64(0x9E3779B97F4A7C15) + keys[:, column]
    order = numpy.argsort(mixed, kind="stable")
    values = mixed[order]
    del keys, mixed  # the most that a build holds in memory: below 100 bytes a document
    begins = numpy.flatnonzero(numpy.r_[True, values[1:] != values[:-1]])
    sizes = numpy.diff(numpy.r_[begins, len(values)])
    place = numpy.arange(len(values)) - numpy.repeat(begins, sizes)  # position within its bucket, in document order
    for back in range(1, min(WINDOW, int(sizes.max(initial=1)) - 1) + 1):
        later = numpy.flatnonzero(place >= back)
        for first in range(0, len(later), CHUNK):
            at = later[first : first + CHUNK]
            yield numpy.stack([alive[order[at]], alive[order[at - back]]], axis=1)
    far = numpy.flatnonzero(place > WINDOW)
    for first in range(0, len(far), CHUNK):
        at = far[first : first + CHUNK]
        yield numpy.stack([alive[order[at]], alive[order[at - place[at]]]], axis=1)


class _Similarity:
    """Exact Jaccard similarity |A ∩ B| / |A ∪ B| of the shingle sets of two documents."""

    def __init__(self, folder: Path, threshold: float):
        self.threshold, self.ends = threshold, numpy.load(folder / "ends.npy")
        size = (folder / "shingles.u32").stat().st_size
        self.shingles = numpy.memmap(folder / "shingles.u32", numpy.uint32, "r") if size else numpy.zeros(0, numpy.uint32)

    def pairs(self, matrix: numpy.ndarray, candidates: numpy.ndarray, band: int) -> numpy.ndarray:
        """Those of `candidates` [k, 2] whose similarity reaches the threshold and that share no earlier band. First discards
        pairs by size, since J <= min / max of their sizes, and by the sketch's estimate."""
        sizes = numpy.diff(self.ends)
        small, large = numpy.sort(sizes[candidates], axis=1).T
        candidates = candidates[small >= self.threshold * large]
        same = matrix[candidates[:, 0]] == matrix[candidates[:, 1]]
        met = same[:, : band * ROWS].reshape(len(same), band, ROWS).all(axis=2).any(axis=1)
        close = same.mean(axis=1) >= self.threshold - MARGIN
        candidates = candidates[close & ~met]
        keep = [self.jaccard(a, b) >= self.threshold for a, b in candidates.tolist()]
        return candidates[numpy.array(keep, bool)]

    def jaccard(self, a: int, b: int) -> float:
        one, other = (self.shingles[self.ends[i] : self.ends[i + 1]] for i in (a, b))
        both = numpy.concatenate([one, other])
        both.sort()
        common = int(numpy.count_nonzero(both[1:] == both[:-1]))
        return common / max(1, len(both) - common)


def select(work: Work) -> None:
    """Decides why each document is dropped, `codes`, and because of which other one, `because`. A single task."""
    folder = work.root / "selected"
    if folder.exists():
        return
    index = work.root / "index"
    starts, codes = numpy.load(index / "starts.npy"), numpy.load(index / "exact.npy").astype(numpy.int8)
    because, items = numpy.full(len(codes), -1, numpy.int64), _num_items(work, starts)
    equal, pairs = numpy.load(index / "equal_items.npy"), numpy.zeros((0, 2), numpy.int64)
    codes[equal[:, 0]], because[equal[:, 0]] = CONTAMINATED_NEAR, equal[:, 1]
    if work.args.near_duplicates is not None:
        pairs = numpy.concatenate([numpy.load(work.pairs(band)) for band in range(BANDS)])
        pairs = pairs[numpy.lexsort((pairs[:, 1], pairs[:, 0]))]
    for later, earlier in pairs[(pairs[:, 1] < items) & (pairs[:, 0] >= items)].tolist():
        if codes[later] == KEPT:
            codes[later], because[later] = CONTAMINATED_NEAR, earlier
    pairs, common = pairs[pairs[:, 1] >= items], []
    if work.args.decontaminate:
        alone = codes.copy()
        _drop_near(alone, because.copy(), pairs)
        common = _find_contaminated(work, starts, codes, because, alone == KEPT)
    _drop_near(codes, because, pairs)  # last: a contaminated document takes none with it
    with whole_folder(folder) as temporary:
        for name, values in (("codes", codes), ("because", because), ("common", numpy.array(common, numpy.int64))):
            numpy.save(temporary / f"{name}.npy", values)


def _drop_near(codes: numpy.ndarray, because: numpy.ndarray, pairs: numpy.ndarray) -> None:
    """Marks documents that are similar to an earlier one that is kept."""
    for later, earlier in pairs.tolist():
        if codes[later] == KEPT and codes[earlier] == KEPT:
            codes[later], because[later] = NEAR, earlier


def _find_contaminated(
    work: Work, starts, codes: numpy.ndarray, because: numpy.ndarray, counted: numpy.ndarray
) -> list[int]:
    """Marks documents that contain an n-gram of an evaluation set; returns the n-grams ignored as common phrases: those in
    many of the documents that are `counted`, which leaves out copies. They are not ignored where all n-grams of their item
    stand in a document: many pages hold a well-known question, and each is contaminated."""
    hits = [_load(work, number, "hits") + [[start, 0]] for number, start in zip(work.numbers, starts, strict=False)]
    hits = numpy.concatenate([numpy.zeros((0, 2), numpy.int64), *hits])
    hits = hits[codes[hits[:, 0]] == KEPT]
    grams, counts = numpy.unique(hits[counted[hits[:, 0]], 1], return_counts=True)
    bound = work.args.contamination_common
    common = grams[counts > bound] if bound else grams[:0]
    table = load_items(work.root)
    hits = hits[~numpy.isin(hits[:, 1], common) | table.whole(hits)]
    documents, first = numpy.unique(hits[:, 0], return_index=True)
    codes[documents] = CONTAMINATED
    because[documents] = [table.owner(int(number)) for number in hits[first, 1]]
    return common.tolist()


def reason_of(work: Work, code: int, because: int, about: dict) -> tuple[str, str]:
    """(step, reason) for a document dropped because of another one."""
    if code == EXACT:
        return "exact_duplicates", "equal to an earlier document"
    if code == NEAR:
        return "near_duplicates", f"at least {work.args.near_duplicates:g} of an earlier document"
    how = "nearly the same as" if code == CONTAMINATED_NEAR else "holds words of"
    return "decontaminate", f"{how} an item of {about['names'][because]}"
