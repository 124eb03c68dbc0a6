"""The parts of benchmarks/data.py between documents and batches: tokens, mixtures, blocks.

Shards of a given size hold random ids: nothing here depends on their values. Text is Python's standard library, 11 MB.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # rates are for one core
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from data_tokenization import library_texts
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from llmrecipes.config import DataArguments, DatasetSource, ModelArguments, RunArguments
from llmrecipes.data.streams import text_source
from llmrecipes.models import build_policy, load_tokenizer
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.run import check_run
from llmrecipes.tokenizers import train_tokenizer
from llmrecipes.tokens.arguments import TokenArguments
from llmrecipes.tokens.blocks import TokenBlocks, collate_blocks
from llmrecipes.tokens.building import folder_name, tokenizer_fingerprint
from llmrecipes.tokens.corpus import load_corpus
from llmrecipes.tokens.mixing import Mixture, share_out
from llmrecipes.tokens.shards import FORMAT, MANIFEST, SUFFIXES, TokenShards, sample_of, sha256_of

ROWS, LENGTH, DOCUMENT = 16, 1024, 700  # rows and tokens per row of a batch; tokens of a document
SHARD = 1 << 26  # tokens per shard as written
MODEL = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 256, "max_position_embeddings": LENGTH}  # fmt: skip


def write_shards(folder: Path, num_tokens: int, made_by: str = "", vocabulary: int = 32_000) -> TokenShards:
    """Shards of random ids, in the form written by `require_tokens`."""
    folder.mkdir(parents=True)
    ids, shards = np.random.default_rng(0).integers(vocabulary, size=min(SHARD, num_tokens), dtype=np.uint16), []
    for number, start in enumerate(range(0, num_tokens, SHARD)):
        size = min(SHARD, num_tokens - start)
        ends = np.append(np.arange(DOCUMENT, size, DOCUMENT), size).astype(np.uint64)
        files = {}
        for suffix, values in zip(SUFFIXES, (ids[:size], ends, ends), strict=True):
            file = folder / f"{number:05d}{suffix}"
            values.tofile(file)
            files[suffix] = {"bytes": file.stat().st_size, "changed": file.stat().st_mtime_ns}
            files[suffix] |= {"sha256": sha256_of(file), "sample": sample_of(file)}
        shards.append({"name": f"{number:05d}", "tokens": size, "documents": len(ends), "bytes": 3 * size, "files": files})
    facts = {"format": FORMAT, "source": "random", "tokenizer": made_by, "dtype": "uint16", "eos_token_id": 0, "notes": []}
    facts |= {key: sum(shard[key] for shard in shards) for key in ("tokens", "documents", "bytes")} | {"shards": shards}
    (folder / MANIFEST).write_text(json.dumps(facts))
    return TokenShards(folder)


def blocks_of(shards: TokenShards, seed: int = 0) -> TokenBlocks:
    return TokenBlocks([shards], LENGTH, Mixture([shards.num_tokens // LENGTH], None, [1 << 60], seed))


def private_bytes() -> int:
    """Anonymous memory of this process: pages of a mapped file can be reclaimed at any time."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


# ---- The parts ----


def first_step() -> dict:
    """CPU seconds from the config to the end of the first step: 1 GB of JSONL, already tokenised, libraries imported."""
    with tempfile.TemporaryDirectory() as work:
        home = Path(work)
        os.environ["LLMRECIPES_CACHE"] = str(home / "cache")
        train_tokenizer(library_texts()[:50], 1000, LENGTH).save_pretrained(home / "tokenizer")
        line = json.dumps({"text": "x" * 2970}) + "\n"
        with (home / "text.jsonl").open("w") as file:
            file.writelines(itertools.repeat(line, 10**9 // len(line)))
        tokenizer = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(home / "tokenizer")))
        data, source = DataArguments([str(home / "text.jsonl")]), text_source(DatasetSource(str(home / "text.jsonl")), 42)
        place = home / "cache" / "tokens" / folder_name(source, tokenizer_fingerprint(tokenizer, True))
        write_shards(place, 10**9 // 3, tokenizer_fingerprint(tokenizer, True), 1000)
        found = {"JSONL, GB": (home / "text.jsonl").stat().st_size / 1e9, "tokens, million": 10**9 / 3e6}
        for name in ("first start, CPU s", "second start, CPU s"):
            found[name], memory = _one_step(data, home)
        return found | {"private memory, GB": memory / 1e9}


def _one_step(data: DataArguments, home: Path) -> tuple[float, int]:
    started, ended = time.process_time(), []

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ended.extend([time.process_time(), private_bytes()])

    args = TrainingArguments(
        output_dir=str(home / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    run = RunArguments()
    run.given = {"datasets": [source.path for source in data.datasets]}
    check_run("pretrain", run, args, (run, data))
    tokenizer = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(home / "tokenizer")))
    corpus = load_corpus(data, TokenArguments(), tokenizer, args, LENGTH)
    trainer = PretrainTrainer(
        model=build_policy(MODEL, tokenizer),
        args=args,
        train_dataset=corpus.blocks,
        data_collator=collate_blocks,
        callbacks=[Stop()],
    )
    trainer.train()
    return ended[0] - started, ended[1]


def memory() -> dict:
    """Private memory added by 2,000 batches of 16 x 1,024 tokens, by size of the shards."""
    found = {}
    for size in (100_000_000, 1_000_000_000, 5_000_000_000):
        with tempfile.TemporaryDirectory() as work:
            shards = write_shards(Path(work) / "tokens", size // 2)
            before = private_bytes()
            blocks = blocks_of(TokenShards(shards.folder))
            for step in range(2000):
                collate_blocks(blocks.__getitems__(range(step * ROWS, (step + 1) * ROWS)))
            found[f"{size / 1e9:g} GB of shards: private MB more"] = (private_bytes() - before) / 1e6
    return found


def loader() -> dict:
    """Million tokens per CPU second in batches of 16 x 1,024 from 1 GB: our blocks in their order, and a reader that gathers
    16 random positions of one mapped file by a single index; alone and in torch's DataLoader, alternating, medians of
    five."""
    with tempfile.TemporaryDirectory() as work:
        shards = write_shards(Path(work) / "tokens", 500_000_000)
        blocks, file = blocks_of(shards), np.concatenate([shards.tokens_of(i) for i in range(len(shards.starts) - 1)])
        file.tofile(f"{work}/flat")
        mapped = np.memmap(f"{work}/flat", dtype=np.uint16, mode="r")
        del file
        steps, places = 400, np.random.default_rng(0).integers(len(mapped) - LENGTH, size=(400, ROWS))

        class Gather(torch.utils.data.Dataset):
            def __getitems__(self, rows):
                return torch.from_numpy(mapped[places.reshape(-1)[rows][:, None] + np.arange(LENGTH)].astype(np.int64))

            def __len__(self):
                return steps * ROWS

        plain = lambda ids: {"input_ids": ids, "labels": ids}
        order = [list(range(i * ROWS, (i + 1) * ROWS)) for i in range(steps)]
        gather = Gather()
        sides = {
            "ours": lambda: [collate_blocks(blocks.__getitems__(rows)) for rows in order],
            "vectorised memmap": lambda: [plain(gather.__getitems__(rows)) for rows in order],
            "ours, DataLoader": lambda: list(DataLoader(blocks, batch_sampler=order, collate_fn=collate_blocks)),
            "vectorised memmap, DataLoader": lambda: list(DataLoader(gather, batch_sampler=order, collate_fn=plain)),
        }
        times = {name: [] for name in sides}
        for _ in range(6):  # the first brings the files into the page cache
            for name, work_through in sides.items():
                started = time.process_time()
                work_through()
                times[name].append(time.process_time() - started)
    found = {name: steps * ROWS * LENGTH / statistics.median(seconds[1:]) / 1e6 for name, seconds in times.items()}
    found["ours / vectorised memmap"] = found["ours"] / found["vectorised memmap"]
    found["the same, DataLoader"] = found["ours, DataLoader"] / found["vectorised memmap, DataLoader"]
    return found


def shares() -> dict:
    """Largest difference between weight and share of tokens, in percentage points: after 10 million tokens, and at any step
    of 16 x 1,024 after the first million."""
    found = {}
    for name, weights in {"40/5/15/40": [40, 5, 15, 40], "LLaMA-1": [67, 15, 4.5, 4.5, 4.5, 2.5, 2]}.items():
        shares = np.array(weights) / sum(weights)
        mixture = Mixture([5000] * len(weights), [share_out(shares, 10**9)], [10**9], seed=42)
        num_blocks = 10_000_000 // LENGTH
        owners = np.searchsorted(mixture.first_blocks, mixture.locate(range(num_blocks)), side="right") - 1
        counts = np.cumsum(owners[:, None] == np.arange(len(weights)), axis=0)
        after = np.arange(1, num_blocks + 1)[:, None]
        error = 100 * np.abs(counts / after - shares).max(axis=1)
        found[f"{name}: 10 million tokens, points"] = error[-1]
        found[f"{name}: worst after 1 million tokens, points"] = error[10**6 // LENGTH :].max()
    started = time.process_time()
    mixture.locate(range(200_000))
    return found | {"samples per CPU s": 200_000 / (time.process_time() - started)}


def resume() -> dict:
    """The batch at sample 3e9 from a new object with five sources, and again from another object."""
    with tempfile.TemporaryDirectory() as work:
        shards = write_shards(Path(work) / "tokens", 50_000_000)
        sources, times, batches = [shards] * 5, [], []
        for _ in range(5):
            started = time.process_time()
            sizes = [s.num_tokens // LENGTH for s in sources]
            mixture = Mixture(sizes, [share_out(np.array([40, 5, 15, 30, 10]), 1 << 40)], [1 << 40], seed=42)
            blocks = TokenBlocks(sources, LENGTH, mixture)
            batches.append(collate_blocks(blocks.__getitems__(range(3 * 10**9, 3 * 10**9 + ROWS)))["input_ids"])
            times.append(time.process_time() - started)
        halves = [
            collate_blocks(blocks.__getitems__(range(3 * 10**9 + i, 3 * 10**9 + i + ROWS // 2))) for i in (0, ROWS // 2)
        ]
    equal = all(torch.equal(batch, batches[0]) for batch in batches)
    equal &= torch.equal(torch.cat([half["input_ids"] for half in halves]), batches[0])
    return {"CPU ms, median of 5": 1e3 * statistics.median(times), "equal, also in two halves": str(equal)}


def attention() -> dict:
    """Seconds of a training step of 8 x 512 tokens, a 3M Llama on one CPU thread, with and without reset_attention."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        shards = write_shards(Path(work) / "tokens", 4_000_000, vocabulary=2000)
        config = MODEL | {"hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 512}
        policy = build_policy(config, train_tokenizer(library_texts()[:50], 2000, LENGTH))
        times = {False: [], True: []}
        for step, reset in itertools.product(range(8), (False, True)):
            blocks = TokenBlocks([shards], 512, reset_attention=reset)
            started = time.process_time()
            batch = collate_blocks(blocks.__getitems__(range(step * 8, step * 8 + 8)))
            policy(**batch, use_cache=False).loss.backward()
            policy.zero_grad()
            times[reset].append(time.process_time() - started)
    plain, reset = (statistics.median(times[key][1:]) for key in (False, True))
    return {"plain, s": plain, "reset_attention, s": reset, "more, %": 100 * (reset / plain - 1)}
