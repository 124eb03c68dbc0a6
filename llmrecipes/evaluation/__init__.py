"""Scores of models side by side: held-out text (`likelihood`), abilities (`abilities`), behaviour (`behaviours`)."""

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from llmrecipes import metrics
from llmrecipes.config import DataArguments, InputError, ModelArguments, load_function
from llmrecipes.data import load_mixture, to_shape
from llmrecipes.evaluation.abilities import load_tasks, score_tasks
from llmrecipes.evaluation.behaviours import answer, judge_answers, kl_from, summarise_behaviour
from llmrecipes.evaluation.likelihood import score_texts, summarise_texts
from llmrecipes.evaluation.table import format_answers, format_table
from llmrecipes.formats import prompt_id
from llmrecipes.models import load_policy, load_tokenizer


@dataclass
class Parts:
    """What every model is scored on; a part that is not configured is None and stands in `skipped` with its reason."""

    texts: list[str] | None = None
    questions: list[dict] | None = None
    tasks: dict | None = None
    judge: object = None
    rule: object = None
    skipped: dict[str, str] = field(default_factory=dict)


def load_parts(data: DataArguments, args) -> Parts:
    """Texts of `eval_datasets`, questions of `datasets`, lm-eval tasks and the judging rules.

    Raises:
        InputError: no model, a baseline that is none of them, a source or task that cannot be read.
    """
    if not args.models:
        raise InputError("`models` is missing; give {name: folder or Hub id, ...}")
    parts = Parts()
    if data.eval_datasets:
        rows = load_mixture(data.eval_datasets, args.seed, announce=False)
        parts.texts = list(to_shape(rows, ("text",), "eval_datasets")["text"])
    else:
        parts.skipped["perplexity"] = "no eval_datasets with held-out text"
    if data.datasets:
        rows = load_mixture(data.datasets, args.seed, announce=False)
        parts.questions = list(to_shape(rows, ("prompt",), "datasets"))
    else:
        parts.skipped["behaviour"] = "no datasets with questions"
    if args.tasks or args.blimp_path:
        parts.tasks = load_tasks(args.tasks, args.tasks_path, args.hub_tasks, args.blimp_path)
    else:
        parts.skipped["abilities"] = "no tasks"
    parts.judge = load_function(args.judge, "judge") if args.judge else None
    parts.rule = load_function(args.rule, "rule") if args.rule else None
    if parts.questions and not parts.judge:
        parts.skipped["judgements"] = "no judge"
    if parts.questions and not parts.rule:
        parts.skipped["gold_score, win_rate"] = "no rule"
    if args.baseline not in args.models:
        parts.skipped["win_rate, kl"] = f"the baseline {args.baseline!r} is not among the models"
    return parts


def evaluate_models(model_args: ModelArguments, args, parts: Parts) -> tuple[dict, list[dict], dict]:
    """Score every model of `args.models`.

    Returns:
        scores (model -> measure -> Estimate), one row a question with every model's judgement, and the answers' texts
        (model -> list).
    """
    scores, answers, judgements, sampled = {}, {}, {}, {}
    # First the baseline, which the others are compared with.
    names = sorted(args.models, key=lambda name: name != args.baseline)
    reference = None
    for name in names:
        started = time.time()
        model, tokenizer = _load(model_args, args.models[name])
        own = scores[name] = {}
        if parts.texts:
            own |= summarise_texts(score_texts(model, tokenizer, parts.texts, args.max_length))
        if parts.tasks:
            own |= score_tasks(model, tokenizer, parts.tasks, args.per_device_eval_batch_size, args.task_limit)
        if parts.questions:
            prompts = [row["prompt"] for row in parts.questions]
            settings = {"max_new_tokens": args.max_new_tokens, "batch_size": args.per_device_eval_batch_size}
            _, ids, answers[name] = answer(model, tokenizer, prompts, **settings)
            judged = judgements[name] = judge_answers(parts.questions, answers[name], parts.judge, parts.rule)
            own |= summarise_behaviour(parts.questions, judged, list(map(len, ids)))
            own |= _compare(name, judgements, args.baseline)
            if args.sample_temperature:
                _, _, texts = answer(
                    model, tokenizer, prompts, temperature=args.sample_temperature, seed=args.seed, **settings
                )
                judged = sampled[name] = judge_answers(parts.questions, texts, parts.judge, parts.rule)
                own |= _sampled(summarise_behaviour(parts.questions, judged, []) | _compare(name, sampled, args.baseline))
            if name == args.baseline and args.kl_prompts:
                reference = (model, tokenizer)
            elif reference and _same_vocabulary(tokenizer, reference[1]):
                kl_prompts = prompts[: args.kl_prompts]
                own["kl"] = kl_from(model, reference[0], tokenizer, kl_prompts, seed=args.seed, **settings)
            elif reference:
                parts.skipped[f"kl of {name}"] = "its tokenizer differs from the baseline's"
        print(f"evaluated {name} in {time.time() - started:.1f} s", flush=True)
    scores = {name: scores[name] for name in args.models}
    answers = {name: answers[name] for name in args.models if name in answers}
    rows = [
        {"prompt_id": prompt_id(row["prompt"])}
        | row
        | {"answers": {name: texts[i] for name, texts in answers.items()}}
        | {"judged": {name: judgements[name][i] for name in answers}}
        for i, row in enumerate(parts.questions or [])
    ]
    return scores, rows, answers


def write_results(
    output_dir: Path, scores: dict, rows: list[dict], answers: dict, parts: Parts, show_answers: int
) -> dict[str, float]:
    """Write metrics.json, answers.jsonl and table.txt, print the table; returns {"model/measure": value}."""
    as_json = {name: {m: e._asdict() for m, e in measures.items()} for name, measures in scores.items()}
    tasks = sorted(parts.tasks["tasks"]) if parts.tasks else []
    text = json.dumps({"models": as_json, "tasks": tasks, "skipped": parts.skipped}, indent=2)
    (output_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    with (output_dir / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = format_table(scores, set(tasks))
    (output_dir / "table.txt").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}")
    print(format_answers(rows, answers, show_answers) if answers else "")
    for part, reason in parts.skipped.items():
        print(f"skipped {part}: {reason}")
    return {f"{name}/{measure}": e.value for name, measures in scores.items() for measure, e in measures.items()}


def _sampled(summary: dict[str, metrics.Estimate]) -> dict[str, metrics.Estimate]:
    """The measures that differ between greedy and sampled answers because a model misbehaves only now and then."""
    return {f"sampled_{m}": summary[m] for m in ("correct", "polite", "gold_score", "win_rate") if m in summary}


def _compare(name: str, judgements: dict, baseline: str) -> dict[str, metrics.Estimate]:
    """`win_rate` of the gold score against the baseline's answers, ties half."""
    own, other = judgements[name], judgements.get(baseline)
    if name == baseline or not other or "gold" not in own[0]:
        return {}
    return {"win_rate": metrics.win_rate([j["gold"] for j in own], [j["gold"] for j in other])}


def _load(model_args: ModelArguments, path: str):
    own = copy.copy(model_args)
    own.model_name_or_path, own.tokenizer_name_or_path = path, model_args.tokenizer_name_or_path
    tokenizer = load_tokenizer(own)
    model = load_policy(own, tokenizer).eval()
    if not hasattr(model, "hf_device_map"):
        import torch

        model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, tokenizer


def _same_vocabulary(tokenizer, other) -> bool:
    return tokenizer.get_vocab() == other.get_vocab()
