"""What evaluations found about a run's model: kept in its folder; what their figures compare with, and who judged."""

from collections.abc import Iterable
from pathlib import Path

from llmrecipes.cards.asked import asked_by
from llmrecipes.cards.names import hide_paths
from llmrecipes.durable import read_json
from llmrecipes.manifest import MANIFEST_FILE
from llmrecipes.measures import NAMED, under_todays_names

RESULTS_FILE = "evaluation.json"  # results of evaluations of the model in this folder, by evaluation
EARLIER = "an earlier evaluation"  # in files from before evaluations were stored by name


def stored_evaluations(folder: Path, manifest: dict) -> dict[str, dict]:
    """Evaluation -> its `scores`, `baseline`, `judged_by`, `tasks` and `asked`, for the model that is there now."""
    stored = read_json(folder / RESULTS_FILE)
    if stored.get("fingerprint") != manifest.get("output_fingerprint"):
        return {}
    found = stored.get("evaluations") or ({EARLIER: {"scores": stored["scores"]}} if stored.get("scores") else {})
    return {
        name: about | {"scores": under_todays_names(about["scores"], about.get("tasks", []))}
        for name, about in found.items()
    }


def about_evaluation(evaluation: Path) -> dict:
    """What is kept of an evaluation, in this folder, beside its scores."""
    metrics, manifest = read_json(evaluation / "metrics.json"), read_json(evaluation / MANIFEST_FILE)
    # No path of this machine: the file is published unchanged.
    judged_by = {who: hide_paths(str(name)) for who, name in (metrics.get("judged_by") or {}).items()}
    about = {"baseline": baseline_of(metrics, manifest), "judged_by": judged_by, "tasks": metrics.get("tasks") or []}
    return about | {"asked": asked_by(manifest, evaluation)}


def describe_evaluation(measures: Iterable[str], about: dict) -> str:
    """What the figures of an evaluation compare with and who judged, in one line; empty if neither applies.

    about: `baseline` (a model's name), `judged_by` ({"judge", "rule", "reward_model"}), `tasks`, as far as known.
    """
    measures, judged_by = [m for m in measures if m not in about.get("tasks", [])], about.get("judged_by") or {}
    decided = {by: [m for m in measures if m in NAMED and NAMED[m].decided_by == by] for by in judged_by}
    parts = []
    compared = [f"`{m}`" for m in measures if is_comparison(m)]
    if compared and about.get("baseline"):
        parts.append(f"{', '.join(compared)}: compared with `{about['baseline']}`")
    if decided.get("judge"):
        parts.append(f"answers judged by `{judged_by['judge']}`")
    if decided.get("rule"):
        parts.append(f"`rule_score` and `rule_win_rate` by the rule `{judged_by['rule']}`")
    if decided.get("reward_model"):
        parts.append(f"`reward` by the reward model `{judged_by['reward_model']}`")
    line = hide_paths("; ".join(parts))
    return line[:1].upper() + line[1:] + "." if line else ""


def baseline_of(metrics: dict, manifest: dict) -> str:
    """The model that an evaluation compared with: from metrics.json (which omits it if nothing was tested), else from the
    config; empty if it is not among the models."""
    name = metrics.get("baseline") or manifest.get("config", {}).get("baseline") or ""
    return name if name in metrics.get("models", {}) else ""


def is_comparison(measure: str) -> bool:
    """Whether `measure` compares a model with the baseline."""
    return measure in NAMED and NAMED[measure].compares
