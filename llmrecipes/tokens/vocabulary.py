"""The texts that a tokenizer is trained on (a weighted sample, drawn in one pass) and its fertility by source."""

import bisect
import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable

import datasets
import xxhash
from transformers import PreTrainedTokenizerBase

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_by_split, source_names
from llmrecipes.data.streams import TextSource, text_source
from llmrecipes.data.tables import say, tell

# What is easily lost: bytes invalid in UTF-8, control characters, joined emoji, right-to-left text, runs of spaces.
ODD = [
    "a  b\t\tc\n\n\n    d ",
    "ﬁ ẞ İ ﷽ 𝔘𝔫𝔦",
    "👩\u200d👩\u200d👧 🇩🇪 e\u0301 é",
    "שלום مرحبا \u202eabc\u202c",
    "\0\x01\x1f\x7f\x85\u2028\ufeff",
]
REPORT_BYTES = 1 << 20  # of each source's text used for the report


def draw_sample(sources: list[DatasetSource], num_bytes: int, seed: int) -> tuple[dict, dict]:
    """Two times source name -> documents: whole documents of about `num_bytes` in all, split by weight (without weights: by
    size), and others, of about REPORT_BYTES a source, to measure on; these are fewer, or none, if a source has no more.

    Each source is read once, keeping the documents with the smallest keyed hashes: a uniform draw without replacement that
    needs no more memory than what it keeps.

    Raises:
        InputError: an unusable row, a source without a text, or only some of the sources have a weight.
    """
    weights = [source.weight for source in sources]
    if any(isinstance(weight, list) for weight in weights):
        raise InputError("weight: a list of weights is for the phases of pretraining; give one number")
    if None in weights and any(weights):
        raise InputError("datasets: give every source a weight, or none")
    names, texts = source_names(sources), [text_source(source, seed) for source in sources]
    if weights[0] is None:  # one pool: every document is equally likely
        kept, others = _smallest(list(zip(names, texts, strict=True)), num_bytes, seed)
    else:
        kept, others = [], []
        for name, text, weight in zip(names, texts, weights, strict=True):
            budget = num_bytes * weight / sum(weights)
            own, more = _smallest([(name, text)], budget, seed)
            size = sum(len(document.encode()) for _, document in own)
            if size < 0.9 * budget:
                say(f"{name}: holds {size:,} of the {budget:,.0f} bytes that its weight gives it; all of it is learned from")
            kept, others = kept + own, others + more
    return tuple({name: [text for owner, text in some if owner == name] for name in names} for some in (kept, others))


def _smallest(sources: list[tuple[str, TextSource]], budget: float, seed: int) -> tuple[list, list]:
    """(name, document) pairs with the smallest hashes, up to `budget` bytes, and those with the next, up to REPORT_BYTES for
    each source."""
    heap, size, wanted = [], 0, budget + REPORT_BYTES * len(sources)
    for name, source in sources:
        reader, number = source.texts(), -1
        for number, text in enumerate(reader):
            rank = xxhash.xxh3_64_intdigest(f"{number} {text}".encode(), seed)
            length = len(text.encode())
            heapq.heappush(heap, (-rank, name, number, length, text))
            size += length
            while len(heap) > 1 and size - heap[0][3] >= wanted:
                size -= heapq.heappop(heap)[3]
        for line in tell(reader.notes, reader.consumed):
            say(line)
        if number < 0:
            raise InputError(f"{source.where}: nothing is left to learn from: none of {reader.consumed} rows can be used")
    heap.sort(reverse=True)
    ends = list(itertools.accumulate(length for _, _, _, length, _ in heap))
    count = bisect.bisect_left(ends, budget) + 1
    in_order = lambda some: [(name, text) for _, name, _, _, text in sorted(some, key=lambda entry: entry[1:3])]
    return in_order(heap[:count]), in_order(heap[count:])


def by_source(rows: datasets.Dataset) -> dict[str, list[str]]:
    """Source -> its first documents, REPORT_BYTES of them, of rows {"text", "source"}."""
    found, sizes = {}, Counter()
    for batch in rows.iter(1000):
        for text, source in zip(batch["text"], batch["source"], strict=True):
            if sizes[source] < REPORT_BYTES:
                found.setdefault(source, []).append(text)
                sizes[source] += len(text.encode())
    return found


def with_eval_sets(data: DataArguments, seed: int, learned: dict, held_out: dict) -> tuple[dict, dict]:
    """`learned` and `held_out` (source -> documents), with `eval_datasets` in place of the sources whose splits they are."""
    own = {(source.path, source.name) for source in data.eval_datasets}
    others = [name for name, s in zip(source_names(data.datasets), data.datasets) if (s.path, s.name) not in own]
    sets = load_by_split(data.eval_datasets, seed, ("text",)) if data.eval_datasets else {}
    kept = [{name: some[name] for name in others if name in some} for some in (learned, held_out)]
    return kept[0], kept[1] | {name: rows["text"] for name, rows in sets.items()}


def fertility(
    tokenizers: dict[str, PreTrainedTokenizerBase], learned: dict[str, Iterable[str]], held_out: dict[str, Iterable[str]]
) -> list[dict]:
    """For each source and tokenizer: bytes per token, and tokens per word (fertility, Rust et al. 2021), on the first MiB of
    what is held out of it or, if nothing is, of what was learned from.

    learned, held_out: source -> documents."""
    rows = []
    for source in dict.fromkeys([*learned, *held_out]):
        documents, sample, size = held_out.get(source) or learned.get(source, ()), [], 0
        for document in documents:
            sample.append(document)
            size += len(document.encode())
            if size > REPORT_BYTES:
                break
        words = sum(len(re.findall(r"\w+|[^\w\s]", document)) for document in sample)
        for name, tokenizer in tokenizers.items():
            count = sum(map(len, tokenizer(sample, add_special_tokens=False)["input_ids"])) if sample else 0
            if count:
                rows.append(
                    {
                        "source": source,
                        "measured_on": "held-out text" if held_out.get(source) else "text it has learned from",
                        "tokenizer": name,
                        "vocab_size": len(tokenizer),
                        "bytes": size,
                        "bytes_per_token": size / count,
                        "tokens_per_word": count / max(words, 1),
                    }
                )
    return rows


def check_round_trip(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], base: PreTrainedTokenizerBase | None = None
) -> int:
    """Checks that encoding and decoding returns texts byte for byte, unusual ones included; returns their number.

    base: the tokenizer that was extended; texts that it loses too are left out, with a line.

    Raises:
        InputError: a text is not returned.
    """
    texts = given = [*texts, *ODD, "".join(map(chr, range(256)))]
    if base is not None:
        texts = [text for text in given if _give_back(base, text) == text]
        if lost := len(given) - len(texts):
            say(f"{lost} of {len(given)} texts, such as control characters, do not come back from the old tokenizer either")
    for text in texts:
        back = _give_back(tokenizer, text)
        if back != text:
            place = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
            raise InputError(
                f"the tokenizer does not give back {text[max(place - 10, 0) : place + 10]!r} but "
                f"{back[max(place - 10, 0) : place + 10]!r}"
            )
    return len(texts)


def _give_back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def describe_policy(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """How digits, spaces and lines are split: the tokens of a few texts."""
    samples = ("1234567", "x = 12.5", "    return", "a\n\n\nb", "don't", "naïve 你好")
    split = lambda text: [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return {text: split(text) for text in samples}
