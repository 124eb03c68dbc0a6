"""The table of measures: each name the evaluation can write is in it, and names of older versions are read as today's."""

import pytest

from llmrecipes import measures
from llmrecipes.keys.renamed import MEASURES, measure_hint


def test_old_names_lead_to_measures_and_are_none_themselves():
    assert set(MEASURES.values()) <= set(measures.EVALUATION) and not set(MEASURES) & set(measures.NAMED)


def test_scores_of_an_older_version_are_read_under_todays_names():
    polite = {"value": 0.75, "low": 0.5, "high": 0.875, "n": 8}
    read = measures.under_todays_names(
        {"sampled_polite": polite, "win_rate": polite, "kl": polite, "correct": polite}, tasks=["kl"]
    )
    assert set(read) == {"sampled_rude", "rule_win_rate", "kl", "correct"}
    assert read["sampled_rude"] == {"value": 0.25, "low": 0.125, "high": 0.5, "n": 8} and read["kl"] is polite
    assert measures.under_todays_names(read, tasks=["kl"]) == read


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sft/unknown_on_knowable", "`sft/over_abstention`"),
        ("ppo/sampled_gold_score", "`ppo/sampled_rule_score`"),
        ("kl", None),
        ("scores/polite", None),
        ("ppo/correct", None),
        ("eval_rewards/accuracies", None),
    ],
)
def test_an_old_name_is_hinted_at_only_where_a_model_stands_before_it(name, hint):
    found = measure_hint(name)
    assert found is None if hint is None else hint in found


def test_arrow_and_meaning_also_of_sampled_answers_and_of_a_kind():
    assert measures.with_arrow("sampled_rude") == "sampled_rude ↓" and measures.with_arrow("mmlu") == "mmlu"
    assert measures.meaning("sampled_rude").startswith("sampled answers: answers that are rude")
    assert measures.meaning("reward_win_rate_harmful").startswith("harmful requests: ") and measures.meaning("mmlu") == ""
