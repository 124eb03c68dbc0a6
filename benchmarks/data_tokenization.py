"""Part of benchmarks/data.py about texts becoming tokens. Each side is a process of its own that imports what it needs."""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import alone

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # rates are for one core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
LENGTH = 1024


def library_texts(count: int | None = None) -> list[str]:
    """`count` texts of Python's standard library, over and over; by default each of them once, 11 MB."""
    files = sorted(Path(os.__file__).parent.glob("**/*.py"))
    files = [f for f in files if "site-packages" not in f.parts and not {"test", "tests"} & set(f.parts)]
    texts = [text for text in (f.read_text(encoding="utf-8", errors="ignore") for f in files) if text.strip()]
    return texts if count is None else list(itertools.islice(itertools.cycle(texts), count))


def tokenization(documents: int | None = None) -> dict:
    """Tokens per CPU second after imports, and peak memory with them: ours, `datasets.map`, and our command, whose shards
    must be ours. The two sides take turns and each counts with its fastest of three: other load only ever slows a turn."""
    found = {}
    with tempfile.TemporaryDirectory() as work:
        home = Path(work)
        found["documents"] = alone(_prepare, home, documents)
        sides = {"ours": _ours, "datasets.map": _with_map}
        turns = [{name: alone(_measured, side, home / str(i)) for name, side in sides.items()} for i in range(3)]
        for name in sides:
            tokens, seconds, peak = min((turn[name] for turn in turns), key=lambda turn: turn[1])
            found |= {f"{name}: thousand tokens per CPU s": tokens / seconds / 1e3, f"{name}: million tokens": tokens / 1e6}
            found[f"{name}: peak of the process, imports included, GB"] = peak
        seconds, peak = alone(_by_command, home)
        found |= {"python -m llmrecipes.tokens: CPU s, imports included": seconds}
        found |= {"python -m llmrecipes.tokens: peak of the process, GB": peak}
        same = _digests(home / "0" / "ours") == _digests(home / "command")
        found["python -m llmrecipes.tokens: the same shards"] = str(same)
    rates = [found[f"{name}: thousand tokens per CPU s"] for name in ("ours", "datasets.map")]
    return found | {"ours / datasets.map": rates[0] / rates[1]}


def _prepare(home: Path, documents: int | None) -> int:
    from llmrecipes.tokenizers import train_tokenizer

    train_tokenizer(library_texts()[::4], 16_000, LENGTH).save_pretrained(home / "tokenizer")
    texts = library_texts(documents)
    with (home / "text.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return len(texts)


def _measured(side, home: Path) -> tuple[int, float, float]:
    work_through = side(home)
    started = time.process_time()
    tokens = work_through()
    return tokens, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _ours(home: Path):
    from llmrecipes.config import DatasetSource, ModelArguments
    from llmrecipes.data.streams import text_source
    from llmrecipes.tokenizers import load_tokenizer
    from llmrecipes.tokens.building import require_tokens

    tokenizer = load_tokenizer(ModelArguments(tokenizer_name_or_path=str(home.parent / "tokenizer")))
    source = text_source(DatasetSource(str(home.parent / "text.jsonl")), 0)
    return lambda: require_tokens(source, tokenizer, home / "ours", False).num_tokens


def _with_map(home: Path):
    """The usual way: tokenize, then concatenate and split into blocks (transformers' run_clm.py)."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(home.parent / "tokenizer")

    def ids(batch):
        found = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"ids": [[*row, tokenizer.eos_token_id] for row in found]}

    def group(batch):
        chain = [i for row in batch["ids"] for i in row]
        return {"ids": [chain[i : i + LENGTH] for i in range(0, len(chain) // LENGTH * LENGTH, LENGTH)]}

    def work_through() -> int:
        file, cache = str(home.parent / "text.jsonl"), str(home / "cache")
        rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
        tokens = rows.map(ids, batched=True, remove_columns="text")
        count = sum(map(len, tokens["ids"]))
        tokens.map(group, batched=True)
        return count

    return work_through


def _by_command(home: Path) -> tuple[float, float]:
    keys = {"datasets": home / "text.jsonl", "tokenizer_name_or_path": home / "tokenizer", "tokens_dir": home / "command"}
    command = [sys.executable, "-m", "llmrecipes.tokens", *(f"--{key}={value}" for key, value in keys.items())]
    subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL, check=True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def _digests(folder: Path) -> list[dict]:
    shards = json.loads(next(folder.glob("*/tokens.json")).read_text())["shards"]
    return [{suffix: about["sha256"] for suffix, about in shard["files"].items()} for shard in shards]
