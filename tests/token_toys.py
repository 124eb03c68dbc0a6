"""Rows, texts and corpora shared by the tests of tokens."""

import json

import numpy as np
from test_training import arguments

from llmrecipes.config import DatasetSource
from llmrecipes.data.streams import text_source
from llmrecipes.tokens.arguments import TokenArguments
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
