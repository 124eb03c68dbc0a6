"""N responses for each prompt, written chunk by chunk so that an interrupted run loses at most one chunk."""

import io
import json
import os
import zlib
from pathlib import Path

import datasets
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.durable import write_text
from llmrecipes.formats import parse_growing, parse_jsonl, prompt_id
from llmrecipes.generation import answer_texts, sample_responses
from llmrecipes.models import context_length, eos_token_ids
from llmrecipes.templates import encode_prompts, options_of

# Grows by a chunk at a time, each row beside its checksum; samples.jsonl has the rows once all are there. Stays until the
# manifest, which then vouches for samples.jsonl, says "finished".
PARTIAL, RESULT, PARQUET = "samples.partial.jsonl", "samples.jsonl", "samples.parquet"
COLUMNS = ("prompt_id", "responses", "finish_reasons", "num_tokens", "model", "sampling")


def encode_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], num_samples: int, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of each row's prompt.

    Raises:
        InputError: a prompt is empty, too long for the context, or needs a chat template that is missing;
            a data set already has one of the columns to be written.
    """
    if num_samples < 1:
        raise InputError(f"num_samples: {num_samples} must be at least 1 (2 or more to rank them)")
    clash = [column for column in COLUMNS[1:] if column in rows[0]]
    if clash:
        raise InputError(f"datasets: has a column `{clash[0]}` already; leave it out with `columns:`")
    if rows[0].get("prompt_id") not in (None, prompt_id(rows[0]["prompt"])):
        say("datasets: the rows' own `prompt_id` gives way to one made of the prompt; to keep it, rename it by `columns:`")
    context = context_length(model)
    room = context - max_new_tokens if context else None
    prompts, options = [row["prompt"] for row in rows], [options_of(row) for row in rows]
    return encode_prompts(tokenizer, prompts, room, "datasets", options)


def write_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    encoded: list[list[int]],
    output_dir: Path,
    *,
    num_samples: int,
    sampling: dict,
    batch_size: int,
    seed: int,
    model_name: str,
    cache_implementation: str | None = None,
) -> list[dict]:
    """Samples and writes `samples.jsonl`; returns its rows (recipes/sample.py lists the columns).

    encoded: from `encode_rows`. sampling: max_new_tokens, temperature, top_k, top_p. Prompts are processed in chunks of
    batch_size prompts; each chunk has its own seed and is appended in one write, so that a resumed run equals an
    uninterrupted one. Complete chunks of an unfinished run, known by their checksums in PARTIAL, are not sampled again; the
    caller removes that file when the run is finished.
    """
    partial, result = output_dir / PARTIAL, output_dir / RESULT
    output_dir.mkdir(parents=True, exist_ok=True)
    done = _read_partial(partial, batch_size, rows)
    settings = {
        "eos_token_ids": eos_token_ids(model, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "batch_size": batch_size,
        "cache_implementation": cache_implementation,
        **sampling,
    }
    with tqdm(total=len(rows) * num_samples, initial=len(done) * num_samples, desc="responses", mininterval=5) as bar:
        for start in range(len(done), len(rows), batch_size):
            # A separate seed per chunk: what was sampled before it, in this process or another, does not matter.
            generator = torch.Generator(device=model.device).manual_seed(seed * 1_000_003 + start // batch_size)
            prompts = [ids for ids in encoded[start : start + batch_size] for _ in range(num_samples)]
            responses = sample_responses(model, prompts, generator=generator, progress=bar.update, **settings)
            texts = answer_texts(tokenizer, [response.token_ids for response in responses])
            chunk = []
            for i, row in enumerate(rows[start : start + batch_size]):
                own = slice(i * num_samples, (i + 1) * num_samples)
                chunk.append(
                    {"prompt_id": prompt_id(row["prompt"]), "prompt": row["prompt"], "responses": texts[own]}
                    | {"finish_reasons": [response.finish_reason for response in responses[own]]}
                    | {"num_tokens": [len(response.token_ids) for response in responses[own]]}
                    | {"model": model_name, "sampling": sampling | {"seed": seed}}
                    | {key: value for key, value in row.items() if key not in ("prompt", "prompt_id")}
                )
            _append(partial, chunk)
            done += chunk
    text = "".join(_to_line(row) for row in done)
    if result.exists() and result.read_bytes() != text.encode():
        print(f"{result}: was changed before the run was finished; written again as it was sampled", flush=True)
    write_text(result, text)
    return done


def _read_partial(path: Path, chunk_size: int, rows: list[dict]) -> list[dict]:
    """What was sampled for the first of `rows` in complete chunks. The file is cut after them: a kill left part of another
    chunk, or, which is said, a line is damaged or not of its row."""
    lines, done = path.read_bytes().splitlines(keepends=True) if path.exists() else [], []
    for line, row in zip(lines, rows, strict=False):
        [kept] = parse_growing(line) or [{}]
        found = kept.get("row")
        if not line.endswith(b"\n") or not isinstance(found, dict) or kept.get("crc32") != _checksum(found):
            break
        if found["prompt_id"] != prompt_id(row["prompt"]):
            break
        done.append(found)
    whole = len(done) if len(done) == len(rows) else len(done) // chunk_size * chunk_size
    if len(lines) - whole >= chunk_size:  # more than a kill leaves
        print(f"{path}: line {len(done) + 1} is damaged; sampling again from prompt {whole + 1}", flush=True)
    if lines:
        with path.open("r+b") as file:
            file.truncate(sum(map(len, lines[:whole])))
    return done[:whole]


def _to_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _checksum(row: dict) -> int:
    return zlib.crc32(_to_line(row).encode(errors="surrogatepass"))


def _append(path: Path, rows: list[dict]) -> None:
    with path.open("ab") as file:
        file.write("".join(_to_line({"crc32": _checksum(row), "row": row}) for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def to_parquet(output_dir: Path) -> None:
    """Replaces samples.jsonl by samples.parquet, which is smaller and typed."""
    source, temporary = output_dir / RESULT, output_dir / "samples.tmp"
    whole = io.BytesIO()  # on a full disk arrow's own writer kills the process
    datasets.Dataset.from_list(_read_jsonl(source)).to_parquet(whole)
    temporary.write_bytes(whole.getvalue())
    temporary.replace(output_dir / PARQUET)
    source.unlink()


def _read_jsonl(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return list(parse_jsonl(lines, str(path)))
