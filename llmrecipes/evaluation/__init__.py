"""Scores of models side by side: held-out text (`likelihood`), abilities (`abilities`), behaviour (`behaviours`)."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftConfig

from llmrecipes import metrics
from llmrecipes.config import DataArguments, InputError, ModelArguments, load_function
from llmrecipes.data import load_mixture
from llmrecipes.evaluation.abilities import PUBLISHED, load_tasks, score_items, summarise_items
from llmrecipes.evaluation.arguments import EvaluateArguments
from llmrecipes.evaluation.behaviours import (
    JUDGED,
    answer,
    behaviour_hits,
    compare,
    compare_pairs,
    finished_answers,
    judge_answers,
    kl_from,
    summarise_behaviour,
)
from llmrecipes.evaluation.consistency import paraphrase_consistency, self_consistency
from llmrecipes.evaluation.likelihood import score_texts, summarise_texts
from llmrecipes.evaluation.table import format_answers, format_changes, format_table
from llmrecipes.formats import prompt_id
from llmrecipes.judging.judges import LLMJudge, load_judge
from llmrecipes.judging.pairwise import PairJudge, read_guidelines
from llmrecipes.measures import EVALUATION
from llmrecipes.models import load_policy, load_tokenizer, read_config
from llmrecipes.processes import device, once, share
from llmrecipes.reward_models.scoring import RewardScorer, check_reward_path, same_tokenizer, tell_unread, with_reader
from llmrecipes.signals import IN_A_CHAIN
from llmrecipes.templates import options_of, require_chat_template, row_check
from llmrecipes.tokenizers import require_folder


@dataclass
class Parts:
    """What every model is scored on; a part that is not configured is None and listed in `skipped` with the reason.

    p_values: model -> measure -> p of McNemar's exact test against `baseline`, for shares of items; empty without a
    baseline.
    """

    texts: list[str] | None = None
    questions: list[dict] | None = None
    tasks: dict | None = None
    judge: object = None
    pairs: PairJudge | None = None
    rule: object = None
    reward: object = None
    judged_by: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    baseline: str = ""
    p_values: dict[str, dict[str, float]] = field(default_factory=dict)


def load_parts(data: DataArguments, args: EvaluateArguments, model_args: ModelArguments | None = None) -> Parts:
    """Loads texts of `eval_datasets`, questions of `datasets`, lm-eval tasks and the judging rules.

    Raises:
        InputError: there is no model, one is missing or of another kind, or a source or task cannot be read, or a
            model's chat template does not show all of a question.
    """
    if not args.models:
        raise InputError("`models` is missing; give {name: folder or Hub id, ...}")
    for name, path in args.models.items():
        check_language_model(name, path, args.trust_remote_code)
    parts = Parts(baseline=args.baseline)
    if data.eval_datasets:
        parts.texts = list(load_mixture(data.eval_datasets, args.seed, ("text",), announce=False)["text"])
    else:
        parts.skipped["perplexity"] = "no eval_datasets with held-out text"
    if data.datasets:
        check = _question_check(model_args or ModelArguments(), args)
        parts.questions = list(load_mixture(data.datasets, args.seed, ("prompt",), announce=False, check=check))
    else:
        parts.skipped["behaviour"] = "no datasets with questions"
    if args.tasks or args.blimp_path:
        parts.tasks = load_tasks(args.tasks, args.tasks_path, args.hub_tasks, args.blimp_path, args.allow_code_execution)
    else:
        parts.skipped["abilities"] = "no tasks"
    parts.rule = load_function(args.rule, "rule") if args.rule else None
    if args.reward_model_name_or_path:
        check_reward_path(args.reward_model_name_or_path, trust_remote_code=args.trust_remote_code)
    parts.judge = load_judge(args.judge, args, args.judge_guidelines, args.output_dir)
    if isinstance(parts.judge, LLMJudge) and args.judge_pairs:
        parts.pairs = PairJudge(parts.judge.verdicts, read_guidelines(args.judge_guidelines))
    if parts.questions and not parts.judge:
        parts.skipped["judgements"] = "no judge"
    if parts.questions and not parts.rule:
        parts.skipped["rule_score, rule_win_rate"] = "no rule"
    if args.baseline not in args.models:
        parts.skipped["win rates, kl_from_baseline"] = f"the baseline {args.baseline!r} is not among the models"
    named = {"judge": args.judge_model if args.judge == "llm" else args.judge, "rule": args.rule}
    named["reward_model"] = args.reward_model_name_or_path
    parts.judged_by = {key: value for key, value in named.items() if value}
    return parts


def check_language_model(name: str, path: str, trust_remote_code: bool = False) -> None:
    """InputError unless `path` holds a language model or an adapter of one; reads only configs."""
    require_folder(path, f"models: {name}")
    adapter = (Path(path) / "adapter_config.json").is_file()
    key = f"models: {name}"
    config = read_config(path, key, PeftConfig) if adapter else read_config(path, key, trust_remote_code=trust_remote_code)
    kinds = [config.task_type or ""] if adapter else config.architectures or []
    if any("SEQ_CLS" in kind or "SequenceClassification" in kind for kind in kinds):
        raise InputError(f"models: {name}: {path} scores answers but cannot write any; give it as reward_model_name_or_path")


def _question_check(model_args: ModelArguments, args: EvaluateArguments) -> Callable[[dict, str], None]:
    """`row_check` with the chat template of every model."""
    checks = {}
    for name, path in args.models.items():
        tokenizer = load_tokenizer(replace(model_args, model_name_or_path=path), args.trust_remote_code)
        of_template = row_check(tokenizer)
        checks.setdefault(json.dumps(of_template.key, default=str), (name, path, tokenizer, of_template))

    def check(row: dict, where: str) -> None:
        for name, path, tokenizer, of_template in checks.values():
            if not isinstance(row["prompt"], str):
                require_chat_template(tokenizer, f"models: {name}: {path}")
            try:
                of_template(row, where)
            except InputError as error:
                raise InputError(f"{error} (models: {name})") from None

    check.key = sorted(checks)
    if path := args.reward_model_name_or_path:
        own = replace(model_args, model_name_or_path=path, tokenizer_name_or_path=None)
        return with_reader(check, load_tokenizer(own, args.trust_remote_code))
    return check


def evaluate_models(model_args: ModelArguments, args: EvaluateArguments, parts: Parts) -> tuple[dict, list[dict], dict]:
    """Scores every model of `args.models`.

    Returns:
        scores (model -> measure -> Estimate), one row per question with every model's judgement, and the answers' texts
        (model -> list).
    """
    if parts.questions and args.reward_model_name_or_path:
        tell_unread(parts.questions)
        parts.reward = RewardScorer(model_args, args.reward_model_name_or_path, trust_remote_code=args.trust_remote_code)
    scores, greedy, sampled, hits = {}, {}, {}, {}
    # The baseline first, since the others are compared with it.
    names = sorted(args.models, key=lambda name: name != args.baseline)
    reference = None
    for name in names:
        started = time.monotonic()
        model, tokenizer = _load(model_args, args.models[name], args.trust_remote_code)
        own = scores[name] = {}
        hits[name] = {}
        if parts.texts:
            score = lambda texts, m=model, t=tokenizer: score_texts(m, t, texts, args.max_length)
            own |= summarise_texts(share(parts.texts, score))
        if parts.tasks:
            size = args.per_device_eval_batch_size
            hits[name] = score_items(model, tokenizer, parts.tasks, size, args.task_limit, shared=True)
            own |= summarise_items(hits[name])
        if parts.questions:
            own |= _behave(name, model, tokenizer, args, parts, greedy, sampled)
            hits[name] |= behaviour_hits(parts.questions, greedy[name][1])
            if name == args.baseline and args.kl_prompts:
                reference = (model, tokenizer)
            elif reference and same_tokenizer(tokenizer, reference[1]):
                kl_prompts = [row["prompt"] for row in parts.questions][: args.kl_prompts]
                own["kl_from_baseline"] = kl_from(
                    model, reference[0], tokenizer, kl_prompts, seed=args.seed, **_settings(args)
                )
            elif reference:
                parts.skipped[f"kl_from_baseline of {name}"] = "its tokenizer differs from the baseline's"
        if name != args.baseline and args.baseline in hits:
            keys = [row.get("key") for row in parts.questions or []]
            groups = dict.fromkeys(JUDGED, keys)
            parts.p_values[name] = metrics.mcnemar_by_measure(hits[name], hits[args.baseline], groups)
        once(lambda n=name, s=started: print(f"evaluated {n} in {time.monotonic() - s:.1f} s", flush=True))
    scores = {name: scores[name] for name in args.models}
    answers = {name: greedy[name][0] for name in args.models if name in greedy}
    rows = [
        {"prompt_id": prompt_id(row["prompt"])}
        | row
        | {"answers": {name: texts[i] for name, texts in answers.items()}}
        | {"judged": {name: greedy[name][1][i] for name in answers}}
        for i, row in enumerate(parts.questions or [])
    ]
    return scores, rows, answers


def _settings(args: EvaluateArguments) -> dict:
    return {"max_new_tokens": args.max_new_tokens, "batch_size": args.per_device_eval_batch_size}


def _behave(
    name, model, tokenizer, args: EvaluateArguments, parts: Parts, greedy: dict, sampled: dict
) -> dict[str, metrics.Estimate]:
    """Answers of one model, judged: once greedy, `num_samples` times sampled.

    greedy, sampled: model -> (answers, judgements), with those of the baseline for comparison; this model's are added.
    """
    rows, prompts = parts.questions, [row["prompt"] for row in parts.questions]

    def judge(texts: list[str], ids: list[list[int]]) -> list[dict]:
        whole, size = finished_answers(model, tokenizer, ids), args.per_device_eval_batch_size
        return judge_answers(rows, texts, parts.judge, parts.rule, parts.reward, size, whole)

    given = {"shared": True, "template_options": [options_of(row) for row in rows]} | _settings(args)
    _, ids, texts = answer(model, tokenizer, prompts, **given)
    greedy[name] = (texts, judge(texts, ids))
    if parts.pairs and name != args.baseline and args.baseline in greedy:
        if not compare_pairs(rows, greedy[name], greedy[args.baseline], parts.pairs):
            parts.skipped[f"judge_win_rate of {name}"] = "the judge gave no readable comparison"
    own = summarise_behaviour(rows, greedy[name][1], list(map(len, ids)))
    own |= compare(name, rows, greedy, args.baseline)
    runs = [greedy[name]]
    for i in range(args.num_samples if args.sample_temperature else 0):
        _, drawn, texts = answer(model, tokenizer, prompts, temperature=args.sample_temperature, seed=args.seed + i, **given)
        runs.append((texts, judge(texts, drawn)))
    if len(runs) > 1:
        sampled[name] = runs[1]
        own |= _sampled(summarise_behaviour(rows, runs[1][1], []) | compare(name, rows, sampled, args.baseline))
    found = {
        "self_consistency": self_consistency(rows, runs),
        "paraphrase_consistency": paraphrase_consistency(rows, *runs[0]),
    }
    return own | {measure: estimate for measure, estimate in found.items() if estimate}


def write_results(
    output_dir: Path, scores: dict, rows: list[dict], answers: dict, parts: Parts, show_answers: int, price: tuple = ()
) -> dict[str, float]:
    """Writes metrics.json, table.txt and, if questions were asked, answers.jsonl; prints the table.

    Returns {"model/measure": value}.

    price: of a judge model, dollars per million prompt tokens and per million completion tokens.
    """
    judge_numbers = {}
    if isinstance(parts.judge, LLMJudge):
        judge_numbers = parts.judge.endpoint.numbers(price) | {"judge_kept": parts.judge.verdicts.kept}
    as_json = {name: {m: e._asdict() for m, e in measures.items()} for name, measures in scores.items()}
    tasks = sorted(parts.tasks["tasks"]) if parts.tasks else []
    tasks += [name for name in ("blimp", PUBLISHED) if any(name in measures for measures in scores.values())]
    about = {"tasks": tasks, "skipped": parts.skipped, "judged_by": parts.judged_by} | judge_numbers
    p_values = {name: parts.p_values[name] for name in scores if parts.p_values.get(name)}
    about |= {"baseline": parts.baseline, "p_values": p_values} if p_values else {}
    text = json.dumps({"models": as_json} | about, indent=2)
    (output_dir / "metrics.json").write_text(text + "\n", encoding="utf-8")
    if rows:
        with (output_dir / "answers.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    table = format_table(scores, set(tasks), parts.baseline, p_values)
    (output_dir / "table.txt").write_text(table + "\n", encoding="utf-8")
    if not os.environ.get(IN_A_CHAIN):  # the chain prints it at its end
        print(f"\n{table}")
    if p_values:
        print(format_changes(scores, parts.baseline, p_values))
    print(format_answers(rows, answers, show_answers) if answers else "")
    for part, reason in parts.skipped.items():
        print(f"skipped {part}: {reason}")
    if judge_numbers:
        print("judge: " + ", ".join(f"{key[6:]} {value:,}" for key, value in judge_numbers.items()))
    return {f"{name}/{measure}": e.value for name, measures in scores.items() for measure, e in measures.items()}


def _sampled(summary: dict[str, metrics.Estimate]) -> dict[str, metrics.Estimate]:
    """The measures that differ between greedy and sampled answers, as when a model misbehaves only occasionally."""
    return {f"sampled_{m}": summary[m] for m, about in EVALUATION.items() if about.sampled and m in summary}


def _load(model_args: ModelArguments, path: str, trust_remote_code: bool):
    own = replace(model_args, model_name_or_path=path)
    tokenizer = load_tokenizer(own, trust_remote_code)
    model = load_policy(own, tokenizer, trust_remote_code).eval()
    if not hasattr(model, "hf_device_map"):
        model.to(device())
    return model, tokenizer
