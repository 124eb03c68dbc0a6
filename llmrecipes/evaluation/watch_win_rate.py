"""Whether a model in training answers better than at step 0 (watch.py), by a rule, a reward model or a judge model.

Each has a `name`, the key in watch.jsonl; `keep(rows, texts, whole, device)`, one value per question to store under it
(whole: which answers the model ended itself); and `win_rate(rows, now, first)`, the share of questions answered better than
at step 0, ties half.
"""

from collections.abc import Callable

import torch

from llmrecipes import metrics
from llmrecipes.config import InputError, ModelArguments, as_score
from llmrecipes.formats import prompt_text
from llmrecipes.judging.endpoint import Endpoint, Verdicts
from llmrecipes.judging.pairwise import PairJudge, read_guidelines
from llmrecipes.reward_models.scoring import RewardScorer


class RuleComparison:
    """Scores of a rule (row, answer) -> number."""

    name = "golds"

    def __init__(self, rule: Callable[[dict, str], float]):
        self.rule = rule

    def keep(self, rows: list[dict], texts: list[str], whole: list[bool] | None, device: torch.device) -> list[float]:
        return [
            as_score(self.rule(row, text), "watch_rule:", row["prompt"], text) for row, text in zip(rows, texts, strict=True)
        ]

    def win_rate(self, rows: list[dict], now: list[float], first: list[float]) -> metrics.Estimate:
        return metrics.win_rate(now, first, groups=[row.get("key") for row in rows])


class RewardComparison:
    """Scores of the reward model in `path`, kept on the CPU except while scoring; loading it draws no random numbers."""

    name = "rewards"

    def __init__(self, path: str):
        with torch.random.fork_rng(devices=[]):
            self.judge = RewardScorer(ModelArguments(), path, torch.device("cpu"))

    def keep(self, rows: list[dict], texts: list[str], whole: list[bool] | None, device: torch.device) -> list[float]:
        self.judge.model.to(device)
        try:
            return self.judge.score(rows, texts, whole, batch_size=64)
        finally:
            self.judge.model.to("cpu")

    win_rate = RuleComparison.win_rate


class JudgeComparison:
    """The answers themselves, compared in both orders by the model behind `endpoint` (llmrecipes.judging.pairwise)."""

    name = "texts"

    def __init__(self, endpoint: Endpoint, guidelines: str | None = None):
        self.endpoint, self.pairs = endpoint, PairJudge(Verdicts(endpoint), read_guidelines(guidelines))

    def keep(self, rows: list[dict], texts: list[str], whole: list[bool] | None, device: torch.device) -> list[str]:
        return texts

    def win_rate(self, rows: list[dict], now: list[str], first: list[str]) -> metrics.Estimate:
        asked = [(prompt_text(row["prompt"]), a, b) for row, a, b in zip(rows, now, first, strict=True)]
        compared = zip(self.pairs.compare_all(asked), [row.get("key") for row in rows], strict=True)
        read = [(outcome, key) for outcome, key in compared if outcome is not None]
        if not read:
            raise InputError(f"judge_model: {self.endpoint.model} gave no readable comparison of {len(rows)} answers")
        outcomes, keys = zip(*read, strict=True)
        return metrics.mean_outcome(outcomes, groups=keys)
