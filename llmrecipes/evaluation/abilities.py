"""Abilities as lm-eval tasks in local YAML files (configs/tasks), run in process on a loaded model.

lm-eval: Gao et al., "The Language Model Evaluation Harness" (v0.4). Nothing is downloaded; if the Hub is reachable,
lm-eval's own tasks can be used as well (`tasks: [blimp]` with `hub_tasks: true`).
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

import datasets
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes import metrics
from llmrecipes.config import DataArguments, InputError, nearest
from llmrecipes.data import load_source
from llmrecipes.formats import parse_jsonl
from llmrecipes.processes import once, processes

PUBLISHED = "blimp_published"


def load_items(source: dict, where: dict | None = None, max_items: int | None = None, **metadata) -> dict:
    """Items of a task, for `custom_dataset: !function llmrecipes.evaluation.abilities.load_items` in its YAML file.

    `dataset_kwargs` are `source` (the keys of a `datasets:` entry: path, name, split, ...), `where` (column: value) to keep
    only some rows, and `max_items`; `metadata` is added by lm-eval itself.
    Rows: `context` (may be empty), `choices` (list of text), `label` (index of the right choice), and optionally
    `delimiter`, the text between a context and its choices: by default a space, and nothing if the context is empty. The
    task must therefore set `target_delimiter: ""`.
    """
    rows = load_source(DataArguments(datasets=[source]).datasets[0], seed=0)
    for column, value in (where or {}).items():
        rows = rows.filter(lambda row, column=column, value=value: row[column] == value)
    missing = {"context", "choices", "label"} - set(rows.column_names)
    if missing:
        there = ", ".join(rows.column_names)
        raise InputError(f"{source['path']}: columns are {there}; expected context, choices, label")
    if max_items is not None:
        rows = rows.select(range(min(max_items, len(rows))))
    return datasets.DatasetDict({"test": rows.map(_delimited)})


def _delimited(row: dict) -> dict:
    delimiter = row.get("delimiter", " ")
    return {"choices": [delimiter + choice for choice in row["choices"]]} if row["context"] else {}


def load_tasks(
    tasks: list[str],
    tasks_path: str,
    hub_tasks: bool = False,
    blimp_path: str | None = None,
    allow_code_execution: bool = False,
) -> dict:
    """lm-eval's loaded tasks ({"tasks": ..., "groups": ...}), to be used for all models.

    blimp_path: folder with BLiMP's JSONL files (Warstadt et al. 2020, arXiv 1912.00582). Each file gives two tasks:
    blimp_NAME, with a space before each sentence as in lm-eval, and blimp_published_NAME, which scores the bare sentences.
    allow_code_execution: also accept tasks that run code written by the model (lm-eval's `unsafe_code`).

    Raises:
        InputError: a task is not among the YAML files under `tasks_path`, runs code without permission or has no score per
            item, or a BLiMP file is malformed.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not Path(tasks_path).is_dir():
        raise InputError(f"tasks_path: {tasks_path} is not a folder; give the one with the tasks' YAML files")
    manager = TaskManager(include_path=tasks_path, include_defaults=hub_tasks)
    known = manager.all_tasks
    for task in tasks:
        if task not in known:
            raise _no_such_task(task, known, tasks_path, hub_tasks)
    members = list(_expanded(tasks, manager.task_index))
    lost = next((name for name, entry, config in members if entry is None and not config), None)
    if lost and not hub_tasks:
        raise InputError(f"tasks: {lost} is lm-eval's own, with data from the Hub; set `hub_tasks: true` to use it")
    if running := next((name for name, _, config in members if config.get("unsafe_code")), None):
        if not allow_code_execution:  # before loading, which imports the task's code and downloads its data
            raise _not_allowed(running)
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # required by the `code_eval` metric of humaneval and mbpp
    try:
        loaded = manager.load([*tasks, *(_blimp_files(blimp_path) if blimp_path else [])])
    except (OSError, ImportError) as error:  # its data or metric is unreachable, or a package is missing
        raise InputError(f"tasks: {', '.join(tasks)} cannot be loaded: {str(error)[:200]}") from None
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not allow_code_execution:  # an attribute of tasks that are Python classes
            raise _not_allowed(name)
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise _no_item_score(name)
    return loaded


def _no_such_task(task: str, known: list[str], tasks_path: str, hub_tasks: bool) -> InputError:
    if hub_tasks:  # thousands
        return InputError(f"tasks: there is no {task!r} under {tasks_path} or in lm-eval{nearest(task, known)}")
    return InputError(
        f"tasks: there is no {task!r} under {tasks_path}; there are {', '.join(known)}; lm-eval's own tasks "
        "need `hub_tasks: true`"
    )


def _expanded(members: list[str | dict], index: dict) -> Iterator[tuple[str, object, dict]]:
    """(name, lm-eval's entry in `index` or None, config) of each of `members`, and of what groups and tags among them hold.
    A member is a name, or a config inside a group."""
    for member in members:
        own = member if isinstance(member, dict) else {}
        name = own.get("group", own.get("task")) if own else member
        entry = index.get(name)
        config = (entry.cfg or {} if entry else {}) | own
        yield name, entry, config
        if entry and entry.kind.name == "TAG":
            yield from _expanded(sorted(entry.tags), index)
        elif isinstance(config.get("task"), list):
            yield from _expanded(config["task"], index)


def _not_allowed(task: str) -> InputError:
    return InputError(
        f"tasks: {task} runs code that the model writes, on this machine; leave it out or set allow_code_execution: true"
    )


def _no_item_score(task: str) -> InputError:
    return InputError(f"tasks: {task} gives no number for each item (as perplexities do not); leave it out")


def _blimp_files(folder: str) -> list[dict]:
    """Two tasks per file: one like lm-eval's own `blimp`, which reads the same rows from the Hub, and one as published,
    without lm-eval's space between the empty context and the sentence."""
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise InputError(f"blimp_path: {folder} holds no .jsonl file; give the folder of BLiMP's paradigms")
    configs = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, row in enumerate(parse_jsonl(lines, str(file)), start=1):
                if not all(isinstance(row.get(key), str) for key in ("sentence_good", "sentence_bad")):
                    raise InputError(
                        f"{file}, row {number}: expected sentence_good and sentence_bad, found {', '.join(row)}"
                    )
        config = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": str(file)},
            "output_type": "multiple_choice",
            "validation_split": "train",
            "doc_to_text": "",
            "doc_to_target": 0,
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        configs.append(config | {"task": f"blimp_{file.stem}"})
        configs.append(config | {"task": f"{PUBLISHED}_{file.stem}", "target_delimiter": ""})
    return configs


def score_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: dict,
    batch_size: int = 64,
    limit: int | None = None,
    shared: bool = False,
) -> dict[str, list[float]]:
    """Each item's score for each task of `loaded` (see load_tasks), in the items' order: whether it is right, or the task's
    first metric if that is something else, by the task's first filter (for gsm8k `strict-match`). The scores of all of
    BLiMP's paradigms together are also `blimp` or `blimp_published`.

    limit: use the first `limit` items of each task; None: all. shared: all processes of a launch call this, and each scores
    its share.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    fewest = min(len(task.eval_docs) for task in loaded["tasks"].values())
    state = processes()
    if shared and 1 < state.num_processes <= min(fewest, limit or fewest):
        # For a model that is already loaded, lm-eval assumes a single process; it distributes the items by these attributes.
        lm._rank, lm._world_size, lm.accelerator = state.process_index, state.num_processes, Accelerator(cpu=state._cpu)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    # lm-eval writes a progress bar for each task: fine on a terminal, but in a log they drown the rest.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        options = {"limit": limit, "bootstrap_iters": 0, "log_samples": True}
        # load_tasks has refused tasks that run code unless allowed.
        results = evaluate(lm=lm, task_dict=loaded, confirm_run_unsafe_code=True, **options)
    return once(lambda: _item_scores(results["samples"])) if shared else _item_scores(results["samples"])


def _item_scores(by_task: dict[str, list[dict]]) -> dict[str, list[float]]:
    scores = {}
    for name, samples in by_task.items():
        metric = next((m for m in ("acc", "exact_match") if m in samples[0]), None) or samples[0]["metrics"][0]
        # lm-eval returns every item once per filter; counting these as separate items would narrow the interval.
        samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        try:
            # Several processes return theirs one after the other, but models are compared item by item.
            scores[name] = [float(sample[metric]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        except (TypeError, ValueError):
            raise _no_item_score(name) from None
    for name, values in list(scores.items()):
        if name.startswith("blimp_"):
            scores.setdefault(PUBLISHED if name.startswith(f"{PUBLISHED}_") else "blimp", []).extend(values)
    return scores


def summarise_items(scores: dict[str, list[float]]) -> dict[str, metrics.Estimate]:
    """The share of each task's items that are right; the mean score if scores are not all 0 or 1."""
    binary = {name: all(value in (0.0, 1.0) for value in values) for name, values in scores.items()}
    return {name: metrics.accuracy(v) if binary[name] else metrics.mean(v) for name, v in scores.items()}
