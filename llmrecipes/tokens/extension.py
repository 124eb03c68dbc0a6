"""More tokens for a tokenizer and its model: byte-pair merges continued on new text, from where the old ones end.

Continued BPE training (Purason et al. 2025, arXiv 2512.03989): text is split by the old tokenizer, and its most frequent
neighbouring tokens are merged. Old ids stay, and every new token joins old ones, of whose embeddings the mean is its first
one. Appending a new vocabulary's tokens instead leaves many that the old merges never reach.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.durable import read_json, write_json
from llmrecipes.tokens.building import tokenizer_fingerprint

FILE = "extension.json"
BATCH = 1000
# Token i as one character, so that the library's own BPE trainer can merge tokens; no character up there is a space.
FIRST = 0x10000


def extend_tokenizer(
    base: PreTrainedTokenizerBase, texts: Iterable[str], vocab_size: int
) -> tuple[PreTrainedTokenizerBase, dict[int, list[int]]]:
    """`base` with up to `vocab_size` tokens, and the old tokens that each new one joins.

    Raises:
        InputError: `base` is no byte-level BPE that splits words first, has as many tokens already, or nothing repeats.
    """
    rules = _rules_of(base)
    if vocab_size <= len(base):
        raise InputError(f"vocab_size: {vocab_size} is not above the {len(base)} tokens that are to be extended")
    vocabulary, merges = rules["model"]["vocab"], rules["model"]["merges"]
    old = {i: token for token, i in vocabulary.items()}
    # In the model's table special tokens keep their ids however large it becomes.
    vocabulary |= {token["content"]: token["id"] for token in rules["added_tokens"]}
    number, parts, known = max(base.get_vocab().values()) + 1, {}, set(map(tuple, merges))
    for pair in _learn_merges(base, texts, vocab_size - len(base)):
        sides = ["".join(old[ord(c) - FIRST] for c in side) for side in pair]
        token = "".join(sides)
        if tuple(sides) not in known:
            merges.append(sides)
            known.add(tuple(sides))
        if token not in vocabulary:
            vocabulary[token], parts[number] = number, [ord(c) - FIRST for c in "".join(pair)]
            number += 1
        if len(base) + len(parts) == vocab_size:
            break
    if not parts:
        raise InputError("datasets: no two neighbouring tokens occur twice, so there is nothing to extend the tokenizer by")
    if len(base) + len(parts) < vocab_size:
        say(f"vocab_size: the text holds {len(parts):,} new tokens that occur twice, not {vocab_size - len(base):,}")
    made = copy.deepcopy(base)
    made._tokenizer = Tokenizer.from_str(json.dumps(rules))
    return made, parts


def _rules_of(base: PreTrainedTokenizerBase) -> dict:
    """The contents of tokenizer.json."""
    backend = getattr(base, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if isinstance(backend, Tokenizer) else {"model": {}}
    is_byte_level = "ByteLevel" in json.dumps(rules.get("pre_tokenizer")) and not rules["model"].get("byte_fallback")
    splits = is_byte_level and len(backend.pre_tokenizer.pre_tokenize_str("one two")) > 1
    if rules["model"].get("type") != "BPE" or not splits:
        raise InputError(
            "base_tokenizer_name_or_path: only byte-level BPE that splits text into words first can be "
            "extended, as that of GPT-2, Llama 3, Qwen and SmolLM2"
        )
    return rules


def _learn_merges(base: PreTrainedTokenizerBase, texts: Iterable[str], count: int) -> list[list[str]]:
    """The next merges of `base` on `texts`, most frequent first, as pairs of strings of old tokens; more than `count`, as
    two may give the same token."""
    backend, special = base.backend_tokenizer, set(base.added_tokens_decoder)
    words: Counter[str] = Counter()
    texts = iter(texts)
    while batch := [text for text, _ in zip(texts, range(BATCH))]:
        for found in backend.encode_batch(batch, add_special_tokens=False):
            for _, own in groupby(zip(found.word_ids, found.ids, strict=True), key=lambda entry: entry[0]):
                ids = [i for _, i in own]
                if len(ids) > 1 and special.isdisjoint(ids):
                    words["".join(chr(FIRST + i) for i in ids)] += 1
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    characters = len(set().union(*words)) if words else 0
    trainer = trainers.BpeTrainer(vocab_size=characters + count + count // 4 + 16, min_frequency=2, show_progress=False)
    bpe.train_from_iterator((" ".join([word] * number) for word, number in sorted(words.items())), trainer)
    return json.loads(bpe.to_str())["model"]["merges"]


def save_extension(folder: Path, path: str, base: PreTrainedTokenizerBase, parts: dict[int, list[int]]) -> None:
    """Notes beside an extended tokenizer which one it extends, and of what its new tokens are made."""
    write_json(folder / FILE, {"extends": path, "tokenizer": tokenizer_fingerprint(base), "parts": parts})


def is_extension(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer, as loaded from its folder, extends another one."""
    return (Path(tokenizer.name_or_path) / FILE).exists()


def read_extension(tokenizer: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, where: str) -> dict[int, list[int]]:
    """The tokens of `tokenizer` that a model with the tokenizer `own` has not, with their parts; none if it has all.

    Raises:
        InputError: `tokenizer` extends another one.
    """
    found = read_json(Path(tokenizer.name_or_path) / FILE)
    if tokenizer_fingerprint(own) == tokenizer_fingerprint(tokenizer):
        return {}
    if tokenizer_fingerprint(own) != found["tokenizer"]:
        raise InputError(f"{tokenizer.name_or_path}: extends the tokenizer of {found['extends']}, not that of {where}")
    return {int(number): ids for number, ids in found["parts"].items()}


@torch.no_grad()
def grow_embeddings(model: PreTrainedModel, parts: dict[int, list[int]], where: str) -> None:
    """Gives `model` embeddings, and rows of its head, for new tokens: each the mean of those of its parts (Gee et al. 2022,
    arXiv 2402.09977). All others stay as they are, bit for bit.

    Raises:
        InputError: the weights are split over processes.
    """
    if hasattr(next(model.parameters()), "ds_shape"):
        raise InputError(
            "tokenizer_name_or_path: has more tokens than the model, which cannot be added to it under ZeRO-3; "
            "use configs/accelerate/ddp.yaml or zero2.yaml until the model is saved"
        )
    before = model.get_input_embeddings().weight.shape[0]
    if max(parts) >= before:
        model.resize_token_embeddings(max(parts) + 1, mean_resizing=False)
    tables = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None}
    bias = getattr(model.get_output_embeddings(), "bias", None)
    for table in [*tables, *([bias] if bias is not None else [])]:
        for number, ids in parts.items():
            table[number] = table[ids].float().mean(0).to(table.dtype)
    after = model.get_input_embeddings().weight.shape[0]
    say(
        f"{where}: {len(parts):,} new tokens, of {before:,} embeddings before and {after:,} now; each begins as the mean of "
        "its parts'"
    )
