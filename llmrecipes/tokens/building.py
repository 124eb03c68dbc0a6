"""Texts into token shards, once per source and tokenizer, by whichever process asks first; others wait and use them.

A folder's name is a hash of what its shards depend on: the source's contents, its keys that change the texts, the tokenizer.
One process writes, under a lock that lasts as long as it lives: if it is killed, the next one keeps all finished shards.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.data.once import written_once
from llmrecipes.data.streams import TextReader, TextSource
from llmrecipes.data.tables import HINT, NOT_USABLE, Notes, say, tell
from llmrecipes.durable import read_json, write_json
from llmrecipes.manifest import corpora_of, digest
from llmrecipes.tokens.shards import FORMAT, MANIFEST, ORDER, ShardWriter, TokenShards
from llmrecipes.turns import special_finder

PROGRESS = "progress.json"
SHARD_TOKENS = 1 << 26
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1000, 4 << 20  # a shard ends with a batch: other numbers make other shards
ENCODED_CHARACTERS = 1 << 20  # encoded at once: the encodings take about 20 times as many bytes
SAY_EVERY_S = 30
LONG = 10_000_000  # characters; usually a whole file in one row


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, split_special: bool = False) -> str:
    """Fingerprint of everything that decides how a text is tokenised, and of the token that ends it.

    split_special: see `build_encoder`."""
    backend = _plain_backend(tokenizer)
    rules = backend.to_str() if backend else str(sorted(tokenizer.get_vocab().items()))
    own = backend.encode_special_tokens if backend else None
    return digest(
        [
            hashlib.sha256(rules.encode()).hexdigest(),
            type(tokenizer).__name__ if not backend else "",
            split_special or own,
            tokenizer.eos_token_id,
        ]
    )


def build_encoder(tokenizer: PreTrainedTokenizerBase, split_special: bool = False) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to ids, without special tokens around them: the same as `tokenizer` itself, but faster.

    split_special: a text that spells out a special token (<|im_end|>) is split like any other; otherwise it gives that
    token."""
    backend = _plain_backend(tokenizer)
    if backend is None:
        return lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=split_special)["input_ids"]
    backend.encode_special_tokens = split_special or backend.encode_special_tokens
    return lambda texts: [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """A copy of the tokenizer's Rust backend that neither truncates nor pads; None if it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    copy = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = bool(tokenizer.split_special_tokens)  # the backend has what it was last called with
    copy.no_truncation()
    copy.no_padding()
    return copy


def folder_name(source: TextSource, made_by: str) -> str:
    """Folder name of the shards of `source` by the tokenizer with fingerprint `made_by`."""
    name = re.sub(r"[^\w.-]+", "-", source.where)[-40:].strip("-.")
    return f"{name}-{digest([FORMAT, ORDER, source.identity, made_by])}"


def require_tokens(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, home: Path, whole_check: bool, split_special: bool = True
) -> TokenShards:
    """The shards of `source` below `home`, built if missing, and checked (see `TokenShards.check`).

    split_special: see `build_encoder`.

    Raises:
        InputError: an unusable row, no rows at all, a full disk, a damaged shard.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no EOS token, which ends a document; set `eos_token` in its tokenizer_config.json"
        )
    made_by = tokenizer_fingerprint(tokenizer, split_special)
    folder = home / folder_name(source, made_by)
    with written_once(folder / MANIFEST, folder, "`tokens_dir`") as is_missing:
        if is_missing:
            _build(source, tokenizer, made_by, folder, split_special)
    shards = TokenShards(folder)
    shards.check({made_by}, whole_check, digests=int(os.environ.get("RANK", 0)) == 0)
    _refuse_left_out(source, shards.manifest.get("left_out"))
    for line in shards.manifest["notes"]:
        say(line)
    return shards


def _build(source: TextSource, tokenizer: PreTrainedTokenizerBase, made_by: str, folder: Path, split_special: bool) -> None:
    done = read_json(folder / PROGRESS) or {"rows": 0, "shards": [], "notes": {}}
    _refuse_left_out(source, done["notes"].get(NOT_USABLE, [0, None])[1])
    for left in folder.glob("*.part"):
        left.unlink()
    reader = source.texts(done["rows"], done.get("state"))
    reader.notes.counts.update({what: count for what, (count, _) in done["notes"].items()})
    reader.notes.examples.update({what: example for what, (_, example) in done["notes"].items()})
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 1 << 16 else "uint32"  # ids may have gaps
    print(f"tokens: {source.where}: {'tokenizing' if not done['rows'] else 'going on'} into {folder}", flush=True)
    encode = _noting(reader.notes, tokenizer, split_special)
    for shard in _write_shards(reader, encode, tokenizer.eos_token_id, folder, len(done["shards"]), dtype):
        notes = {what: [count, reader.notes.examples[what]] for what, count in reader.notes.counts.items()}
        done = {"rows": reader.consumed, "state": reader.state, "shards": [*done["shards"], shard], "notes": notes}
        write_json(folder / PROGRESS, done)
    totals = {key: sum(shard[key] for shard in done["shards"]) for key in ("documents", "tokens", "bytes")}
    if not totals["documents"]:
        raise InputError(f"{source.where}: nothing is left to learn from: none of {reader.consumed} rows can be used")
    facts = {"format": FORMAT, "source": source.where, "tokenizer": made_by, "dtype": dtype, "rows": reader.consumed}
    facts |= {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        **totals,
        "notes": tell(reader.notes, reader.consumed),
        "left_out": reader.notes.examples.get(NOT_USABLE),
        "corpora": corpora_of([source.where]),
    }
    write_json(folder / MANIFEST, facts | {"shards": done["shards"]})
    (folder / PROGRESS).unlink(missing_ok=True)


def _refuse_left_out(source: TextSource, row: str | None) -> None:
    """InputError if a start with `drop_bad_rows` has left out a `row`, and this one may not. Both have one folder, so that
    the one continues what the other made before a row ended it."""
    if row and not source.drop_bad_rows:
        raise InputError(f"{row}{HINT}")


def _noting(notes: Notes, tokenizer: PreTrainedTokenizerBase, split_special: bool) -> Callable[[list[str]], list[list[int]]]:
    """`build_encoder` that also notes texts which the model sees differently from the source."""
    encode = build_encoder(tokenizer, split_special)
    unknown, spelled = {tokenizer.unk_token_id} - {None, tokenizer.eos_token_id}, special_finder(tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - unknown

    def encode_and_note(texts: list[str]) -> list[list[int]]:
        found = encode(texts)
        for text, ids in zip(texts, found, strict=True):
            if "\0" in text:
                notes.note("texts with NUL characters, which are learned", repr(text[max(text.find("\0") - 20, 0) :][:60]))
            if len(text) > LONG:
                notes.note(f"texts of more than {LONG:,} characters", repr(text[:60]))
            if (place := spelled(text)) >= 0:
                example = repr(text[max(place, 20) - 20 :][:60])
                is_text = special.isdisjoint(ids)  # Unigram and WordPiece may find the token among their words
                learned = "text (`split_special_tokens: false` takes it for the token)" if is_text else "that token"
                notes.note(f"texts that spell out a special token, which is learned as {learned}", example)
            if not unknown.isdisjoint(ids):
                notes.note("texts with characters that the tokenizer does not know", repr(text[:60]))
        return found

    return encode_and_note


def _write_shards(reader: TextReader, encode: Callable, eos: int, folder: Path, number: int, dtype: str) -> Iterator[dict]:
    """Yields the entry for tokens.json of each shard, once the shard is finished and holds all rows read so far."""
    writer, started, said, tokens = None, time.monotonic(), time.monotonic(), 0
    for batch in _batches(reader, BATCH_CHARACTERS):
        writer = writer or ShardWriter(folder, f"{number:05d}", dtype)
        for texts in _batches(batch, ENCODED_CHARACTERS):
            for text, ids in zip(texts, encode(texts), strict=True):
                raw = text.encode()
                writer.add([*ids, eos], xxhash.xxh3_64_intdigest(raw), len(raw))
                tokens += len(ids) + 1
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            print(
                f"tokens: {reader.where}: {reader.consumed:,} rows, {tokens / (said - started) / 1e3:.0f}k tokens/s",
                flush=True,
            )
        if writer.tokens >= SHARD_TOKENS:
            yield writer.close()
            writer, number = None, number + 1
    if writer:
        yield writer.close()


def _batches(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """`texts` in batches of BATCH_DOCUMENTS, or fewer that have `most` characters."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= most:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
