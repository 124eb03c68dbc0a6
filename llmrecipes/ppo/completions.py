"""Sample tables: the responses of an evaluation, printed, written to a file and sent to the trackers."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from llmrecipes.config import InputError


def completion_table(
    prompts: list, completions: list[str], names: list[str], figures: torch.Tensor, columns: dict[str, list]
) -> list[dict]:
    """Rows {prompt, completion, name: figure, column: value}. figures: (R, len(names)), one row per response; columns: what
    reward functions have logged, by name, with at least R values."""
    if clash := {"prompt", "completion", "step", *names}.intersection(columns):
        raise InputError(f"log_extra: the table of responses has a column `{clash.pop()}` already; take another name")
    return [
        {"prompt": prompt, "completion": completion, **dict(zip(names, values, strict=True))}
        | {name: column[i] for name, column in columns.items()}
        for i, (prompt, completion, values) in enumerate(zip(prompts, completions, figures.tolist(), strict=True))
    ]


def write_completions(rows: list[dict], args: TrainingArguments, step: int, prefix: str) -> None:
    """Writes `rows` to output_dir/completions/<prefix>-<step>.jsonl and prints the first `args.num_completions_to_print`."""
    _write(training_completions(args).with_name(f"{prefix.replace('/', '-')}-{step:06d}.jsonl"), "w", rows)
    _print(rows[: args.num_completions_to_print])


def training_completions(args: TrainingArguments) -> Path:
    """The file of the responses that training logs show."""
    return Path(args.output_dir) / "completions" / "train.jsonl"


def add_completions(rows: list[dict], args: TrainingArguments, step: int) -> None:
    """Prints `rows`, responses of a training rollout, and appends them to output_dir/completions/train.jsonl."""
    _write(training_completions(args), "a", [{"step": step, **row} for row in rows])
    _print(rows)


def send_completions(rows: list[dict], args: TrainingArguments, step: int, prefix: str) -> None:
    """Sends `rows` as a table to wandb and trackio if the run reports to them. Their run must be open: Trainer's own
    callback opens it when metrics are first logged, and closes trackio's when training ends."""
    for tracker in {"wandb", "trackio"} & set(args.report_to or []):
        if find_spec(tracker) is not None:
            import pandas

            module = import_module(tracker)
            frame = pandas.DataFrame([{**row, "prompt": _last_words(row["prompt"])} for row in rows])
            module.log({f"{prefix}_completions": module.Table(dataframe=frame), "train/global_step": step})


def _write(file: Path, mode: str, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _print(rows: list[dict]) -> None:
    for row in rows:
        print(f"  {_last_words(row['prompt'])!r} -> {row['completion']!r}  score {row['score']:.4g}", flush=True)


def _last_words(prompt: object) -> str:
    """What was asked: a text prompt's end, the last message's content, or token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1]["content"]
    return str(prompt)[-80:]
