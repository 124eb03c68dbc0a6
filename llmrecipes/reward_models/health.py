"""Health check of a reward model on held-out pairs, before a policy is trained against it.

Writes `health.json` (all measures), `health.md` (for people) and a verdict: `healthy`, or `unhealthy` with reasons. Each
threshold is a key; null turns it off.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from accelerate import PartialState
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.durable import write_text
from llmrecipes.formats import prompt_id, prompt_text
from llmrecipes.models import context_length, load_reward_model, load_tokenizer
from llmrecipes.reward_models.health_measures import ScoredPair, accuracy_of, measure_pairs
from llmrecipes.reward_models.health_text import percent, to_markdown
from llmrecipes.reward_models.scoring import check_reward_path, pair_tokens, read_scores

CATEGORY_COLUMNS = ("category", "kind", "subset", "source")
NUM_MISTAKES = 10
NUM_INVARIANCE_ROWS = 64
EXTRA_PADDING = 16  # tokens


@dataclass
class HealthArguments:
    """What is checked of a reward model, and where it stops being healthy."""

    health_check: bool = field(default=True, metadata={"help": "Check the reward model on the held-out pairs."})
    health_max_pairs: int | None = field(default=2000, metadata={"help": "Pairs to check, seeded; null: all."})
    health_category: str | None = field(
        default=None, metadata={"help": "Column of the categories; default: category, kind, subset or source."}
    )
    health_min_accuracy: float | None = field(
        default=0.6, metadata={"help": "Minimum accuracy; its interval must also be above one half."}
    )
    health_min_group_accuracy: float | None = field(
        default=0.5, metadata={"help": "Unhealthy if the whole interval of a margin, length gap or category is below it."}
    )
    health_max_calibration_error: float | None = field(default=0.15, metadata={"help": "Maximum calibration error (ECE)."})
    health_max_length_bias: float | None = field(
        default=0.15, metadata={"help": "How much more often than raters it may prefer the longer (or shorter) answer."}
    )
    health_max_length_correlation: float | None = field(
        default=0.9, metadata={"help": "Greatest |rank correlation| of score and length within pairs."}
    )
    health_max_score_difference: float | None = field(
        default=0.05, metadata={"help": "Largest score change by padding, row order or batch size, in standard deviations."}
    )


def check_saved_model(
    folder: str | Path,
    sets: dict[str, list[dict]],
    args: HealthArguments,
    model_args: ModelArguments,
    run,
    max_length: int | None,
) -> dict:
    """Checks the saved reward model in `folder`, loaded as PPO will load it; writes the files and returns the measures.

    run: has output_dir, per_device_eval_batch_size, seed and trust_remote_code, like TRL's training arguments.
    """
    check_reward_path(str(folder), "model_name_or_path", run.trust_remote_code)
    unset_hf_deepspeed_config()  # otherwise ZeRO-3 partitions the model over processes that do not run this
    model_args = replace(model_args, model_name_or_path=str(folder), tokenizer_name_or_path=None)
    tokenizer = load_tokenizer(model_args, run.trust_remote_code)
    model = load_reward_model(model_args, tokenizer, run.trust_remote_code)
    if getattr(model, "hf_device_map", None) is None:
        model.to(PartialState().device)
    settings = {"max_length": max_length, "batch_size": run.per_device_eval_batch_size, "seed": run.seed}
    health = check_health(model.eval(), tokenizer, sets, args, **settings)
    write_health(Path(run.output_dir), health)
    return health


def check_health(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, list[dict]],
    args: HealthArguments,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    seed: int = 42,
) -> dict:
    """Measures and verdict of `model` on the first of `sets` (name -> pairs); for the others, only the accuracy.

    Pairs with more than max_length tokens (or the model's context) are left out, as in training.

    Raises:
        InputError: no pair is short enough; `health_category` is not a column.
    """
    limit = min(filter(None, [max_length, context_length(model)]), default=None)
    name, *others = sets
    rows, encoded, left_out = _encode_set(tokenizer, list(sets[name]), args, limit, seed, name)
    chosen, rejected = _score_sides(model, encoded, batch_size, name)
    health = {"verdict": "", "reasons": [], "set": name, "left_out": left_out, "thresholds": _thresholds(args)}
    if not all(map(_is_finite, chosen + rejected)):
        health["reasons"] = ["some scores are not finite numbers; lower the learning rate, or train in bf16 or float32"]
        return health | {"verdict": "unhealthy", "num_pairs": len(rows)}
    pairs = _scored_pairs(tokenizer, rows, chosen, rejected, _category_column(rows, args))
    health |= measure_pairs(pairs)
    health["by_set"] = {name: health["accuracy"]}
    for other in others:
        theirs, ids, _ = _encode_set(tokenizer, list(sets[other]), args, limit, seed, other)
        sides = _score_sides(model, ids, batch_size, other)
        health["by_set"][other] = accuracy_of(_scored_pairs(tokenizer, theirs, *sides, None))
    health["invariance"] = _invariance(model, encoded, chosen + rejected, limit)
    health["mistakes"] = _mistakes(rows, pairs)
    health["reasons"] = find_faults(health, args)
    health["verdict"] = "unhealthy" if health["reasons"] else "healthy"
    return health


def find_faults(health: dict, args: HealthArguments) -> list[str]:
    """Why the model is unhealthy, one plain sentence each; empty if it is healthy."""
    reasons = []
    overall, floor = health["accuracy"], args.health_min_accuracy
    if floor is not None and overall["value"] < floor:
        reasons.append(f"accuracy {percent(overall)} is below health_min_accuracy {floor:g}")
    elif floor is not None and overall["low"] <= min(floor, 0.5):
        reasons.append(f"accuracy {percent(overall)} may be guessing, judging by its interval; hold out more pairs")
    floor = args.health_min_group_accuracy
    for what in ("by_margin", "by_length_gap", "by_category") if floor is not None else ():
        reasons += [
            f"accuracy {percent(e)} for {what.removeprefix('by_').replace('_', ' ')} {group} is below "
            f"health_min_group_accuracy {floor:g}"
            for group, e in health[what].items()
            if e["high"] < floor
        ]
    error, limit = health["calibration"]["error"], args.health_max_calibration_error
    if limit is not None and error > limit:
        T = health["calibration"]["temperature"]
        advice = f"; divide its scores by {T:.2g}" + (" or train for less time" if T > 1 else "") if T else ""
        reasons.append(f"calibration error {error:.3f} is above health_max_calibration_error {limit:g}{advice}")
    bias, limit = health["length"].get("bias"), args.health_max_length_bias
    if limit is not None and bias and abs(bias["value"]) > limit and bias["low"] * bias["high"] > 0:
        word = "longer" if bias["value"] > 0 else "shorter"
        model, raters = (health["length"][f"{who}_longer"]["value"] for who in ("model_prefers", "raters_prefer"))
        reasons.append(
            f"it prefers {word} answers: the longer one in {100 * model:.0f} % of pairs, the raters in "
            f"{100 * raters:.0f} %, a gap above health_max_length_bias {limit:g}"
        )
    within, limit = health["length"]["pair_correlation"], args.health_max_length_correlation
    if limit is not None and within and abs(within["value"]) > limit:
        reasons.append(
            f"its score is little more than the length: rank correlation {within['value']:.2f} within pairs is "
            f"beyond health_max_length_correlation {limit:g}"
        )
    limit, spread = args.health_max_score_difference, health["invariance"]["score_std"]
    for what, difference in health["invariance"]["max_difference"].items() if limit is not None else ():
        if difference > limit * spread:
            reasons.append(
                f"{what} changes scores by up to {difference:.3g}, more than health_max_score_difference "
                f"{limit:g} of their standard deviation {spread:.3g}"
            )
    return reasons


def summarize(health: dict) -> dict[str, float]:
    """The main figures, for the run's manifest."""
    found = {"healthy": float(health["verdict"] == "healthy")}
    if "calibration" in health:
        found |= {"calibration_error": health["calibration"]["error"]}
        found |= {"length_bias": health["length"]["bias"]["value"]} if "bias" in health["length"] else {}
    return found


def write_health(output_dir: Path, health: dict) -> None:
    """Writes health.json and health.md, and prints the verdict with its reasons."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "health.md", to_markdown(health))
    write_text(output_dir / "health.json", json.dumps(health, indent=1, ensure_ascii=False) + "\n")
    print(f"\nreward model: {health['verdict']} on {health['num_pairs']:,} held-out pairs; {output_dir / 'health.md'}")
    print("".join(f"  - {reason}\n" for reason in health["reasons"]), end="", flush=True)


def _encode_set(tokenizer, rows: list[dict], args: HealthArguments, limit: int | None, seed: int, name: str) -> tuple:
    """(rows, [(chosen ids, rejected ids)], number left out) of at most health_max_pairs pairs, encoded as in training."""
    if args.health_max_pairs and len(rows) > args.health_max_pairs:
        rows = Random(seed).sample(rows, args.health_max_pairs)
    encoded = [tuple(pair_tokens(row, tokenizer).values()) for row in rows]
    fits = [limit is None or max(map(len, pair)) <= limit for pair in encoded]
    if not any(fits):
        raise InputError(f"health: none of the {len(rows)} pairs of {name} has at most {limit} tokens; raise max_length")
    kept = [(row, pair) for row, pair, ok in zip(rows, encoded, fits, strict=True) if ok]
    return [row for row, _ in kept], [pair for _, pair in kept], len(rows) - len(kept)


@torch.no_grad()
def _score(model, rows: list[list[int]], batch_size: int, extra_padding: int = 0, by_length: bool = True) -> list[float]:
    """Scores by the model's own forward, as other programs call it: padded on the right, with an attention mask."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if by_length else list(range(len(rows)))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        ids, pad = [torch.tensor(rows[i]) for i in places], model.config.pad_token_id or 0
        input_ids = pad_sequence(ids, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        input_ids, mask = (nn.functional.pad(t, (0, extra_padding), value=v) for t, v in ((input_ids, pad), (mask, 0)))
        logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for i, score in zip(places, logits[:, 0].float().tolist(), strict=True):
            scores[i] = score
    return scores


def _score_sides(model, encoded: list[tuple], batch_size: int, name: str) -> list[list[float]]:
    """Scores (pairs,) of the chosen and of the rejected sides; prints a line, since a large model may take minutes."""
    print(f"health check: scoring {len(encoded):,} pairs of {name}", flush=True)
    with tqdm(total=2 * len(encoded), desc="health check", unit="response", leave=False, disable=None) as bar:
        return [read_scores(model, [pair[side] for pair in encoded], batch_size, bar.update).tolist() for side in (0, 1)]


def _invariance(model, encoded: list[tuple], scores: list[float], limit: int | None) -> dict:
    """The largest change of a score when only padding, row order or batch size changes in calls of the model's own forward,
    and the largest difference between that forward and our scores, which are read at a row's last token (with pad = EOS,
    transformers' forward reads the token before)."""
    count = min(len(encoded), NUM_INVARIANCE_ROWS // 2)
    rows = [ids for pair in encoded[:count] for ids in pair]
    ours = [score for i in range(count) for score in (scores[i], scores[len(encoded) + i])]
    extra = EXTRA_PADDING if limit is None else max(0, min(EXTRA_PADDING, limit - max(map(len, rows))))
    base = _score(model, rows, 16)
    asked = {
        "padding": _score(model, rows, 16, extra),
        "row order": _score(model, rows[::-1], 16, by_length=False)[::-1],
        "batch size": _score(model, rows, 1),
    }
    difference = lambda got, base: max(abs(a - b) for a, b in zip(base, got, strict=True))
    differences = {name: difference(got, base) for name, got in asked.items()}
    spread = float(torch.tensor(scores).std(correction=0))
    return {"max_difference": differences, "own_forward": difference(base, ours), "rows": len(rows), "score_std": spread}


def _scored_pairs(tokenizer, rows, chosen: list[float], rejected: list[float], category: str | None) -> list[ScoredPair]:
    lengths = []
    for side in ("chosen", "rejected"):
        texts = [_text(row[side]) for row in rows]
        lengths.append([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    if count := sum(row.get("margin") is not None and _number(row["margin"]) is None for row in rows):
        print(f"health check: {count:,} of {len(rows):,} pairs have a `margin` that is no number; it is not looked at")
    return [
        ScoredPair(
            prompt_id(row["prompt"]),  # a column of this name may hold anything
            a,
            b,
            m,
            n,
            _number(row.get("margin")),
            None if category is None or row.get(category) is None else str(row[category]),
        )
        for row, a, b, m, n in zip(rows, chosen, rejected, *lengths, strict=True)
    ]


def _number(margin) -> float | None:
    return margin if isinstance(margin, (int, float)) and _is_finite(margin) else None


def _category_column(rows: list[dict], args: HealthArguments) -> str | None:
    if args.health_category and args.health_category not in rows[0]:
        raise InputError(
            f"health_category: the pairs have no column `{args.health_category}`; they have {', '.join(rows[0])}"
        )
    return args.health_category or next((name for name in CATEGORY_COLUMNS if rows[0].get(name) is not None), None)


def _mistakes(rows: list[dict], pairs: list[ScoredPair]) -> list[dict]:
    """The pairs that the model orders wrongly with the most confidence, at most one per prompt."""
    found: dict[str, dict] = {}
    for row, pair in sorted(zip(rows, pairs, strict=True), key=lambda item: item[1].difference):
        if pair.difference >= 0 or len(found) == NUM_MISTAKES:
            break
        texts = {"prompt": prompt_text(row["prompt"]), "chosen": _text(row["chosen"]), "rejected": _text(row["rejected"])}
        scores = {"chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score}
        found.setdefault(pair.prompt_id, texts | scores | {"margin": pair.margin, "category": pair.category})
    return list(found.values())


def _text(answer) -> str:
    return answer if isinstance(answer, str) else prompt_text(answer)


def _thresholds(args: HealthArguments) -> dict:
    return {key: value for key, value in asdict(args).items() if "_min_" in key or "_max_" in key and "pairs" not in key}


def _is_finite(value: float) -> bool:
    return value - value == 0
