"""A corpus as a trainer reads it: tokenised once, mixed by token share, in the same order whatever the launch."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import xxhash
from transformers import PreTrainedTokenizerBase

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data.tables import say
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import TokenBlocks
from llmrecipes.tokens.building import build_encoder
from llmrecipes.tokens.mixing import Mixture, share_out
from llmrecipes.tokens.shards import TokenShards, stream_in_memory
from llmrecipes.tokens.sources import load_shards

MANY_EPOCHS = 4  # up to this many, repeated text is worth nearly as much as new text (Muennighoff et al. 2023)
COUNTED_BLOCKS = 4_000_000  # up to this many drawn blocks, documents are counted exactly


@dataclass
class Corpus:
    """names: of the sources. blocks: everything training reads. held_out: texts {"text"}, or None. rows: samples per
    step."""

    names: list[str]
    shards: list[TokenShards]
    blocks: TokenBlocks
    held_out: datasets.Dataset | None
    batch: int

    @property
    def num_documents(self) -> int:
        return sum(shards.num_documents for shards in self.shards)

    def document_lengths(self, most: int = 100_000) -> np.ndarray:
        """Tokens of the first documents of each source, EOS included."""
        parts = [np.diff(stream.ends_of(0)[:most].astype(np.int64), prepend=0) for stream in self.shards]
        return np.concatenate(parts)

    def count_known(self, texts: Sequence[str]) -> int:
        """The number of `texts` that are also documents of the corpus."""
        asked = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)
        known = np.zeros(len(asked), bool)
        for part in (part for shards in self.shards for part in shards.hashes()):
            for start in range(0, len(part), 1 << 20):
                known |= np.isin(asked, part[start : start + (1 << 20)])
        return int(known.sum())

    def seen(self, steps: int, documents: bool = True) -> list[dict]:
        """What the first `steps` read from each source: its share of all tokens, tokens, epochs, and unique tokens and
        documents; documents is None if there are too many to count, or it was not requested."""
        total, length, found = steps * self.batch, self.blocks.length, []
        drawn, blocks = self._drawn(total, documents)
        for name, shards, number, some in zip(self.names, self.shards, drawn, blocks, strict=True):
            size = shards.num_tokens // length
            count = None if some is None else _count_documents(shards, some, length)
            if number >= size:  # all blocks, but not the last tokens, which fill none
                count = shards.num_documents - len(shards.document_ends(size * length - 1, shards.num_tokens - 1))
            found.append(
                {
                    "source": name,
                    "share": number / max(total, 1),
                    "tokens": number * length,
                    "epochs": number / size,
                    "unique_tokens": min(number, size) * length,
                    "documents": count,
                    "of_tokens": shards.num_tokens,
                    "of_documents": shards.num_documents,
                }
            )
        return found

    def _drawn(self, total: int, which: bool) -> tuple[list[int], list[np.ndarray | None]]:
        """For each source, the number of its blocks among the first `total` samples and, if requested and few, which
        ones."""
        mixture, sizes = self.blocks.mixture, self.blocks.mixture.sizes
        if mixture.weighted:
            drawn = mixture.drawn(total).tolist()
            few = [which and n < size and n <= COUNTED_BLOCKS for n, size in zip(drawn, sizes)]
            return drawn, [
                mixture.blocks_of(i, 0, n) - mixture.first_blocks[i] if few[i] else None for i, n in enumerate(drawn)
            ]
        epochs, rest = divmod(total, int(sizes.sum()))
        if not which or rest > COUNTED_BLOCKS:
            return [round(total * size / sizes.sum()) for size in sizes], [None] * len(sizes)
        found = mixture.blocks_of(0, 0, rest)
        owners = np.searchsorted(mixture.first_blocks, found, side="right") - 1
        drawn = (epochs * sizes + np.bincount(owners, minlength=len(sizes))).tolist()
        return drawn, [found[owners == i] - mixture.first_blocks[i] for i in range(len(sizes))]


def _count_documents(shards: TokenShards, blocks: np.ndarray, length: int) -> int:
    """The number of documents that are, in whole or in part, in `blocks`."""
    count, starts = 0, np.sort(blocks) * length
    for number, base in enumerate(shards.starts[:-1]):
        ends, size = shards.ends_of(number), shards.starts[number + 1] - base
        here = starts[(starts < base + size) & (starts + length > base)] - base
        first = np.searchsorted(ends, np.maximum(here, 0).astype(np.uint64), side="right")
        last = np.searchsorted(ends, (np.minimum(here + length, size) - 1).astype(np.uint64), side="right")
        begun, over = (np.bincount(of, minlength=len(ends) + 1) for of in (first, last + 1))
        count += int((np.cumsum(begun - over) > 0).sum())
    return count


def load_corpus(
    data: DataArguments, tokens: TokenArguments, tokenizer: PreTrainedTokenizerBase, args, max_length: int
) -> Corpus:
    """The corpus that pretraining with TrainingArguments `args` reads, in blocks of `max_length` tokens; tokenises texts
    that have not been tokenised yet.

    Raises:
        InputError: an invalid source, weight or phase, less text than one batch, more epochs than `max_epochs`.
    """
    weights = _weights(data.datasets, tokens.phases)
    shards, held_out = load_shards(data, tokens, tokenizer, args.seed)
    names = [s.name or s.path for s in data.datasets]
    sizes = [found.num_tokens // max_length for found in shards]
    for name, size, found in zip(names, sizes, shards, strict=True):
        if size == 0 and len(names) > 1:
            raise InputError(
                f"{name}: {found.num_tokens} tokens do not fill a block of {max_length}; lower max_length or add text"
            )
    rows = args.per_device_train_batch_size * args.world_size
    _require_batch(sum(sizes), rows, max_length)
    batch = rows * args.gradient_accumulation_steps
    epoch_steps = max(1, sum(sizes) // batch)
    steps = args.max_steps if args.max_steps > 0 else int(np.ceil(args.num_train_epochs * epoch_steps))
    ends = [round(steps * part) * batch for part in np.cumsum(tokens.phases or [1.0])]
    counts = _plan(np.array(sizes), weights, ends, tokens.max_epochs)
    seed = args.seed if args.data_seed is None else args.data_seed
    mixture = Mixture(sizes, counts, ends, seed)
    blocks = TokenBlocks(shards, max_length, mixture, epoch_steps * batch, tokens.reset_attention)
    corpus = Corpus(names, shards, blocks, held_out, batch)
    _announce(corpus, steps)
    if counts is not None and tokens.max_epochs:
        _announce_capped(names, weights, counts, tokens.max_epochs)
    return corpus


def build_blocks(
    texts: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    num_rows: int,
    reset_attention: bool = False,
    split_special: bool = True,
) -> TokenBlocks:
    """Blocks of a few texts {"text"}, held in memory, in order; InputError if there are fewer than `num_rows` blocks.

    split_special: see `build_encoder`."""
    encode, documents = build_encoder(tokenizer, split_special), []
    for batch in texts.iter(1000):
        documents += [[*ids, tokenizer.eos_token_id] for ids in encode(batch["text"])]
    blocks = TokenBlocks([stream_in_memory(documents, "texts")], length, reset_attention=reset_attention)
    _require_batch(len(blocks), num_rows, length)
    return blocks


def _require_batch(num_blocks: int, num_rows: int, length: int) -> None:
    if num_blocks < num_rows:
        raise InputError(
            f"datasets: {num_blocks} blocks of {length} tokens are less than one batch of {num_rows}; add "
            "text, or lower max_length or per_device_train_batch_size"
        )


def _weights(sources: list[DatasetSource], phases: list[float]) -> np.ndarray | None:
    """Weights (phases, sources); None if no source has one."""
    given, num_phases = [source.weight for source in sources], len(phases) or 1
    if all(weight is None for weight in given):
        if phases and sources:
            raise InputError("phases: no source has a weight for each phase; write, for instance, weight: [67, 20]")
        return None
    if None in given:
        names = ", ".join(s.name or s.path for s in sources)
        raise InputError(f"datasets: {names}: give every source a weight, or none")
    rows = [weight if isinstance(weight, list) else [weight] * num_phases for weight in given]
    for source, row in zip(sources, rows, strict=True):
        if len(row) != num_phases:
            raise InputError(
                f"{source.name or source.path}: {len(row)} weights for {num_phases} phases; `phases` says what "
                "part of the steps each is for"
            )
    weights = np.array(rows, float).T
    if (weights.sum(axis=1) == 0).any():
        raise InputError("datasets: all weights of a phase are 0")
    return weights


def _plan(sizes: np.ndarray, weights, ends: list[int], max_epochs: float | None) -> list[np.ndarray] | None:
    """The number of samples of each source in a cycle of each phase."""
    if weights is None:
        times = ends[-1] / sizes.sum()
        if max_epochs and times > max_epochs:
            raise InputError(
                f"max_epochs: the steps read the data {times:.2f} times, above {max_epochs:g}; lower max_steps "
                "or num_train_epochs, raise max_epochs or add text"
            )
        return None
    room, counts, start = max_epochs and np.floor(max_epochs * sizes).astype(np.int64), [], 0
    for row, end in zip(weights, ends, strict=True):
        if end == start:
            raise InputError("phases: one of them has no step; raise max_steps or its part")
        counts.append(share_out(row, end - start, room))
        if room is not None:
            room = np.maximum(room - counts[-1] * -(-(end - start) // counts[-1].sum()), 0)
        start = end
    return counts


def _announce(corpus: Corpus, steps: int) -> None:
    """Prints a line about what will be read, and warnings about what may be unintended."""
    folders = [shards.folder for shards in corpus.shards]
    for i, (name, folder) in enumerate(zip(corpus.names, folders, strict=True)):
        if folder in folders[:i]:
            other = corpus.names[folders.index(folder)]
            say(f"warning: {name} has the same texts as {other}, which are so read twice as often; list them once")
    planned, length = corpus.seen(steps, documents=False), corpus.blocks.length
    say(f"corpus: {steps * corpus.batch * length:,} tokens in blocks of {length}: {describe(planned)}")
    for facts in planned:
        if facts["epochs"] > MANY_EPOCHS:
            say(
                f"warning: {facts['source']} is read {facts['epochs']:.1f} times; beyond {MANY_EPOCHS} epochs repeated text "
                "teaches little: lower its weight, set `max_epochs` or add text"
            )


def _announce_capped(names: list[str], weights: np.ndarray, counts: list[np.ndarray], max_epochs: float) -> None:
    """Prints a line for each source that gets less than its weight says, and in which phase."""
    for phase, (asked, given) in enumerate(zip(weights, counts, strict=True), start=1):
        where = f" in phase {phase}" if len(weights) > 1 else ""
        for name, wanted, got in zip(names, asked / asked.sum(), given / given.sum(), strict=True):
            if got < 0.99 * wanted:
                say(
                    f"{name}: its weight says {100 * wanted:.4g} %{where}, but max_epochs {max_epochs:g} leaves it "
                    f"{100 * got:.4g} %; the others get the rest"
                )


def describe(seen: list[dict]) -> str:
    """The result of `Corpus.seen` in one line."""
    return ", ".join(f"{s['source']} {100 * s['share']:.2f} % ({s['epochs']:.2f} epochs)" for s in seen)
