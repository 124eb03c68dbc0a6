"""Rows, texts and corpora shared by the tests of tokens."""

import json

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader
from training_toys import arguments

from llmrecipes.config import DatasetSource
from llmrecipes.data.streams import text_source
from llmrecipes.pretraining import InOrder
from llmrecipes.tokens import building
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import collate_blocks
from llmrecipes.tokens.corpus import Corpus, load_corpus


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(word, number):
    return [f"{word} has {i} hats{', red ones' * (i % 5)}." for i in range(number)]


def ids_of(shards):
    ids = np.empty(shards.num_tokens, np.int64)
    shards.read(0, ids)
    return ids.tolist()


def corpus_of(data, tokenizer, tmp_path, tokens=None, length=16, **training) -> Corpus:
    args = arguments(tmp_path / "out", **({"per_device_train_batch_size": 2, "max_steps": 50} | training))
    return load_corpus(data, tokens or TokenArguments(), tokenizer, args, length)


# --- sources as they lie on disk ------------------------------------------------------------------------------------


def read(path, **keys):
    return list(text_source(DatasetSource(str(path), **keys), 0).texts())


def shards_of(path, tokenizer, tmp_path, whole=False, **keys):
    return building.require_tokens(text_source(DatasetSource(path, **keys), 0), tokenizer, tmp_path / "tokens", whole)


def documents_of(shards):
    return [ids.tolist() for ids in np.split(ids_of(shards), shards.document_ends(0, shards.num_tokens))[:-1]]


def holds(shards, documents, tokenizer):
    """Each of the documents once, as the tokenizer gives it, in whatever order."""
    expected = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents, split_special_tokens=True)["input_ids"]]
    return sorted(documents_of(shards)) == sorted(expected)


def killed_after(real, batches):
    """A `build_encoder` as `real`, whose encoder is interrupted after some batches."""

    def build(tokenizer, *how):
        encode, left = real(tokenizer), [batches]

        def some(texts):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return encode(texts)

        return some

    return build


def rows_of_steps(corpus, processes, batch, workers=0):
    """Of each step, the token ids that `processes` are given, sorted."""
    order = InOrder(len(corpus.blocks))
    parts = [BatchSamplerShard(BatchSampler(order, batch, False), processes, rank) for rank in range(processes)]
    loaders = [
        DataLoader(corpus.blocks, batch_sampler=part, collate_fn=collate_blocks, num_workers=workers) for part in parts
    ]
    micro = [torch.cat([found["input_ids"] for found in batches]) for batches in zip(*loaders)]
    per_step = 8 // (batch * processes)
    steps = [torch.cat(micro[i : i + per_step]) for i in range(0, len(micro), per_step)]
    return [sorted(step.tolist()) for step in steps]
