"""The token shards and the held-out texts of a corpus. Does not import torch."""

import json
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrecipes.config import DataArguments, DatasetSource, InputError
from llmrecipes.data import load_mixture
from llmrecipes.data.once import written_once
from llmrecipes.data.streams import TextSource, text_source
from llmrecipes.data.tables import say
from llmrecipes.durable import cache_folder, write_text
from llmrecipes.manifest import digest
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.building import require_tokens, tokenizer_fingerprint
from llmrecipes.tokens.shards import MANIFEST, ORDER, TokenShards


def load_shards(
    data: DataArguments, tokens: TokenArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[list[TokenShards], datasets.Dataset | None]:
    """(the shards of each source, made if they are missing; held-out texts, if any are wanted).

    Raises:
        InputError: no source or an invalid one, unusable rows, a damaged shard, a full disk.
    """
    if not data.datasets:
        raise InputError("`datasets` is missing; give at least one {path: ...}")
    home = Path(tokens.tokens_dir) if tokens.tokens_dir else cache_folder() / "tokens"
    sources = [None if _is_tokens(s) else text_source(s, seed) for s in data.datasets]
    held_out = _held_out(data, sources, seed, home)
    shards = [
        require_tokens(source, tokenizer, home, tokens.verify_tokens, tokens.split_special_tokens)
        if source
        else _open(Path(given.path), tokenizer, tokens.verify_tokens)
        for source, given in zip(sources, data.datasets, strict=True)
    ]
    return shards, held_out


def _is_tokens(source: DatasetSource) -> bool:
    """Whether `source` is a folder of token shards; InputError for keys that would change its texts."""
    if not (Path(source.path) / MANIFEST).is_file():
        return False
    plain = DatasetSource(source.path)
    for key in (f.name for f in fields(DatasetSource) if f.name not in ("name", "weight")):
        if getattr(source, key) != getattr(plain, key):
            raise InputError(
                f"{source.path}: `{key}` has no effect on text that is already tokenised; give the texts, or leave it out"
            )
    return True


def _open(folder: Path, tokenizer: PreTrainedTokenizerBase, whole: bool) -> TokenShards:
    shards = TokenShards(folder)
    shards.check({tokenizer_fingerprint(tokenizer, split) for split in (True, False)}, whole)
    for line in shards.manifest.get("notes", ()):
        say(line)
    return shards


def _held_out(data: DataArguments, sources: list[TextSource | None], seed: int, home: Path) -> datasets.Dataset | None:
    """Texts of `eval_datasets`, or the documents that `test_split_size` holds out of `sources`; source by source and
    shuffled, so that blocks of them resemble those of training."""
    if data.eval_datasets:
        return load_mixture(data.eval_datasets, seed, ("text",), announce=False, apart=True)
    if not data.test_split_size:
        return None
    if None in sources:
        raise InputError("test_split_size: nothing can be held out of text that is already tokenised; give eval_datasets")
    key = digest([ORDER, [source.identity for source in sources], data.test_split_size, seed])
    file = home / f"held_out-{key}{'-some' * any(source.drop_bad_rows for source in sources)}.json"
    with written_once(file, file, "`tokens_dir`") as is_missing:
        if is_missing:
            chosen = _choose(sources, data.test_split_size, seed)
            write_text(file, json.dumps({"rows": chosen, "texts": _texts_of(sources, chosen, seed)}))
    found = json.loads(file.read_text(encoding="utf-8"))
    for source, rows in zip(sources, found["rows"], strict=True):
        source.without = frozenset(rows)
        source.identity = [*source.identity, key]
    return datasets.Dataset.from_dict({"text": found["texts"]})


def _texts_of(sources: list[TextSource], chosen: list[list[int]], seed: int) -> list[str]:
    """Texts of the `chosen` rows of each source, shuffled within the source."""
    texts = []
    for source, rows in zip(sources, chosen, strict=True):
        source.only = frozenset(rows)
        own = list(source.texts())
        texts += [own[i] for i in np.random.default_rng(seed).permutation(len(own))]
        source.only = None
    return texts


def _choose(sources: list[TextSource], size: float, seed: int) -> list[list[int]]:
    """Numbers of the held-out rows of each source: `size` rows in all or, if below 1, that share of all rows."""
    counts = [source.count() for source in sources]
    total = sum(counts)
    wanted = int(size) if size >= 1 else int(np.ceil(size * total))
    if not 0 < wanted < total:
        raise InputError(f"test_split_size: {size:g} leaves nothing of {total} rows to train on")
    rows = np.sort(np.random.default_rng(seed).permutation(total)[:wanted])
    starts = np.cumsum([0, *counts])
    return [(rows[(rows >= a) & (rows < b)] - a).tolist() for a, b in zip(starts, starts[1:])]
