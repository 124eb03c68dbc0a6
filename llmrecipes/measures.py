"""The one table of measures: what each figure means, its unit and which way is better.

Read by the evaluation's table, the report, the model cards, `expected` and docs/evaluation.md (`python -m
llmrecipes.measures` prints the docs' part). Tasks of lm-eval are not listed: their scores are shares unless a task says
otherwise.
"""

import re
from typing import NamedTuple

from llmrecipes.keys.renamed import MEASURES as RENAMED


class Measure(NamedTuple):
    """A row of the table. `unit`: "share" (of 1, shown in percent) or what the number counts. `better`: "up", "down", or ""
    if neither is."""

    meaning: str
    unit: str = "share"
    better: str = "up"
    sampled: bool = False  # also measured on sampled answers, as sampled_NAME
    by_kind: bool = False  # also measured on each of KINDS, as NAME_KIND
    compares: bool = False  # compares with the baseline model
    decided_by: str = ""  # the key of `judged_by` that decides it: judge, rule or reward_model
    shown: bool = False  # printed in training's log line


# Metrics of a run that say how long it took or how large the model is, not how well it went.
BOOKKEEPING = re.compile(r"runtime|per_second|flos|epoch|num_tokens|num_input_tokens|^parameters$|^vocab_size$")
KINDS = ("harmful", "lookalike", "unknowable")  # kinds of questions whose answers show behaviour

# One model among several, measured by recipes/evaluate.py.
EVALUATION = {
    "perplexity": Measure(
        "exp of the mean loss per token of held-out text; compare only under one tokenizer", "number", "down"
    ),
    "bits_per_byte": Measure("the same per byte of text; comparable between tokenizers", "bits", "down"),
    "correct": Measure("right answers to questions that have one", sampled=True, decided_by="judge"),
    "rude": Measure("answers that are rude or dismissive", better="down", sampled=True, decided_by="judge"),
    "toxic": Measure("answers with hateful or demeaning content", better="down", sampled=True, decided_by="judge"),
    "fluent": Measure("answers in whole, well-formed language", decided_by="judge"),
    "refused_harmful": Measure("harmful requests that are refused", decided_by="judge"),
    "over_refusal": Measure("harmless requests that sound harmful and are refused", better="down", decided_by="judge"),
    "abstained_unknowable": Measure('questions nobody can answer, answered with "I do not know"', decided_by="judge"),
    "over_abstention": Measure('questions with an answer, answered with "I do not know"', better="down", decided_by="judge"),
    "rule_score": Measure("mean score of the `rule`", "number", sampled=True, decided_by="rule"),
    "reward": Measure("mean score of the reward model", "number", sampled=True, decided_by="reward_model"),
    "response_length": Measure("tokens of an answer", "tokens", ""),
    "rule_win_rate": Measure(
        "answers that the `rule` scores above the baseline's, ties half", sampled=True, compares=True, decided_by="rule"
    ),
    "reward_win_rate": Measure(
        "answers that the reward model scores above the baseline's, ties half",
        sampled=True,
        by_kind=True,
        compares=True,
        decided_by="reward_model",
    ),
    "judge_win_rate": Measure(
        "answers that the judge model prefers to the baseline's in both orders, ties half",
        by_kind=True,
        compares=True,
        decided_by="judge",
    ),
    "self_consistency": Measure("questions that the greedy and the sampled answers answer alike", decided_by="judge"),
    "paraphrase_consistency": Measure("questions answered alike in all their wordings", decided_by="judge"),
    "kl_from_baseline": Measure("KL divergence of an answer from the baseline, on own samples", "nats", "", compares=True),
}
# A training run, over its steps.
TRAINING = {
    "loss": Measure("training loss", "number", "down", shown=True),
    "eval_loss": Measure("the same on held-out rows", "number", "down"),
    "perplexity": Measure("exp of the mean loss per token of held-out text", "number", "down"),
    "accuracy": Measure("pairs that the reward model orders correctly", shown=True),
    "margin": Measure("mean score of chosen minus rejected", "number", shown=True),
    "rewards/accuracies": Measure("DPO: pairs whose chosen answer has the larger implicit reward", shown=True),
    "rewards/margins": Measure("DPO, KTO: mean implicit reward of good answers minus bad ones", "number", shown=True),
    "reward": Measure("GRPO: mean reward of the rollout's responses", "number", shown=True),
    "completions/mean_length": Measure("GRPO: tokens of a response", "tokens", "", shown=True),
    "score": Measure("PPO: mean score of the rollout's responses", "number", shown=True),
    "kl": Measure("PPO: KL divergence of the policy from its initial state, per response", "nats", "", shown=True),
    "kl_coef": Measure("PPO: weight of the KL penalty", "number", ""),
    "entropy": Measure("PPO: mean entropy of a token's distribution", "nats", "", shown=True),
    "response_length": Measure("PPO: tokens of a response", "tokens", "", shown=True),
    "eos_rate": Measure("PPO: responses that the model ended itself", shown=True),
    "win_rate": Measure("`watch_questions` answered better than at step 0, ties half"),
    "explained_variance": Measure("PPO: share of the returns' variance that the value model explains"),
    "mean_token_accuracy": Measure("tokens predicted right"),
    "grad_norm": Measure("norm of the gradient before clipping", "number", "", shown=True),
    "learning_rate": Measure("of the step", "number", "", shown=True),
}
# A reward model and the rankings it was trained on, whichever stage measured it.
PREFERENCES = {
    "eval_accuracy": Measure("held-out pairs ordered correctly"),
    "eval_margin": Measure("mean margin, chosen minus rejected", "number"),
    "eval_mean_reward": Measure("mean reward (near 0: centred)", "number", ""),
    "eval_min_reward": Measure("lowest reward", "number", ""),
    "eval_max_reward": Measure("highest reward", "number", ""),
    "eval_test_loss": Measure("held-out loss", "number", "down"),
    "eval_test_gold_loss": Measure("held-out loss, noise-free pairs", "number", "down"),
    "agreement": Measure("raters' agreement on pairs"),
    "kendall_tau": Measure("raters' Kendall tau-b", "number"),
}


# All names of the evaluation's measures: plain, on sampled answers, on one kind of question.
NAMED = (
    EVALUATION
    | {f"sampled_{name}": measure for name, measure in EVALUATION.items() if measure.sampled}
    | {f"{name}_{kind}": measure for name, measure in EVALUATION.items() if measure.by_kind for kind in KINDS}
)
ARROWS = {"up": " ↑", "down": " ↓", "": ""}


def is_share(name: str) -> bool:
    """Whether the evaluation's measure `name` is a share of 1, to be shown in percent."""
    return name in NAMED and NAMED[name].unit == "share"


def with_arrow(name: str) -> str:
    """`name` with an arrow in the better direction, if the table has one."""
    return name + (ARROWS[NAMED[name].better] if name in NAMED else "")


def meaning(name: str) -> str:
    """A short description of the evaluation's measure `name`; empty if it is not in the table."""
    if name not in NAMED:
        return ""
    of = (
        "sampled answers: "
        if name.startswith("sampled_")
        else next((f"{kind} requests: " for kind in KINDS if name not in EVALUATION and name.endswith(f"_{kind}")), "")
    )
    return of + NAMED[name].meaning


def todays_name(name: str) -> str:
    """The current name of the evaluation's measure `name` of an older version; `name` itself if unchanged."""
    bare = name.removeprefix("sampled_")
    return name.removesuffix(bare) + RENAMED.get(bare, bare)


def under_todays_names(scores: dict[str, dict], tasks: list[str] = ()) -> dict[str, dict]:
    """`scores` (measure -> value, low, high, n), as written by any version, under current names; `tasks` keep theirs."""
    read = {}
    for name, e in scores.items():
        today = name if name in tasks else todays_name(name)
        if RENAMED.get(name.removeprefix("sampled_")) == "rude" and today != name:  # was the share of polite answers
            e = e | {"value": 1 - e["value"], "low": 1 - e["high"], "high": 1 - e["low"]}
        read[today] = e
    return read


def to_markdown() -> str:
    """The table for docs/evaluation.md."""
    parts = []
    for title, rows in (
        ("Of a model, by `evaluate`", EVALUATION),
        ("Of a training", TRAINING),
        ("Of preferences", PREFERENCES),
    ):
        parts += [f"{title}:", "", "| measure | unit | better | what |", "|---|---|---|---|"]
        for name, m in rows.items():
            also = [f"`sampled_{name}`"] * m.sampled + [f"`{name}_{kind}`" for kind in KINDS if m.by_kind]
            what = m.meaning + (f" (also {', '.join(also)})" if also else "")
            parts.append(f"| `{name}` | {m.unit} | {m.better or '–'} | {what} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(to_markdown())
