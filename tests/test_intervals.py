"""Intervals are too wide rather than too short, also where shares are near 0 or 1, items come in clusters, or all tie."""

import numpy as np
import pytest

from llmrecipes import metrics
from llmrecipes.intervals import design_effect, exact_interval, outcome_interval

SAMPLES = 300
# At a true coverage of 0.95 of 300 samples fewer than 0.92 happen once in a hundred.
LEAST = 0.92


def coverage(draw, truth, samples=SAMPLES):
    """Share of samples (outcomes, groups) whose interval holds the truth."""
    rng = np.random.default_rng(0)
    intervals = [outcome_interval(*draw(rng)) for _ in range(samples)]
    return sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals) / samples


def test_exact_interval_equals_published_values():
    # Newcombe (1998), table I, method 5: 81/263 and 15/148 and 0/20 and 1/29.
    for successes, n, low, high in [
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ]:
        assert exact_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            exact_interval(successes, n)


def test_outcomes_without_ties_have_the_interval_of_a_share():
    for won in (0, 1, 7, 20):
        assert outcome_interval([1.0] * won + [0.0] * (20 - won)) == pytest.approx(exact_interval(won, 20))
    low, high = outcome_interval([0.5] * 20)
    assert low == pytest.approx(1 - high) and 0.4 < low < 0.45
    with pytest.raises(ValueError):
        metrics.mean_outcome([0.2, 1.0])


def test_design_effect_of_hand_made_clusters():
    assert design_effect([1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3]) == 2, "copies count once"
    assert design_effect([1, 0] * 10, [i // 2 for i in range(20)]) == 1, "unlike items tell as much as single ones"
    assert design_effect([1] * 6, list("aabbbb")) == 20 / 6, "nothing but right: they may all be alike"
    assert design_effect([0, 1, 1, 1]) == design_effect([0, 1, 1, 1], [None] * 4) == 1


SIZES = {
    "one to five": lambda m: 1 + np.arange(m) % 5,
    "one or eight": lambda m: np.where(np.arange(m) % 5, 1, 8),
    "three": lambda m: np.full(m, 3),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("share", [0.99, 0.95, 0.7, 0.03])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_clustered_shares_are_covered(sizes, share, alike):
    """60 questions in uneven numbers of wordings; alike: correlation of right answers within a question."""
    counts = SIZES[sizes](60)
    question = np.repeat(np.arange(60), counts)

    def draw(rng):
        own = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), 60) if 0 < alike < 1 else None
        chance = np.full(60, share) if alike == 0 else rng.random(60) < share if alike == 1 else own
        return (rng.random(len(question)) < chance[question]).astype(float).tolist(), question.tolist()

    assert coverage(draw, share) >= LEAST


@pytest.mark.parametrize("ties", [0.98, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("won", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("wordings", [1, 3])
def test_win_rates_of_twenty_questions_are_covered_also_if_most_tie(ties, won, wordings):
    """won: share of the questions that do not tie; each is asked in `wordings` that are all answered alike."""
    chances = [(1 - ties) * (1 - won), ties, (1 - ties) * won]
    groups = [i // wordings for i in range(20 * wordings)]
    draw = lambda rng: (np.repeat(rng.choice([0.0, 0.5, 1.0], 20, p=chances), wordings).tolist(), groups)
    assert coverage(draw, chances[2] + chances[1] / 2) >= LEAST


@pytest.mark.parametrize("prompts", [8, 40])
@pytest.mark.parametrize("confused", [0.0, 0.3])
def test_accuracy_on_the_pairs_of_rankings_of_four_is_covered_with_groups_and_not_without(prompts, confused):
    """confused: share of prompts whose answers the model orders the wrong way round, with the same noise."""
    first, second = np.triu_indices(4, 1)
    groups = np.repeat(np.arange(prompts), len(first)).tolist()

    def draw(rng, count=prompts):
        true = np.sort(rng.normal(size=(count, 4)), axis=1)
        scores = true * np.where(rng.random((count, 1)) < confused, -1, 1) + rng.normal(size=(count, 4))
        return (scores[:, first] < scores[:, second]).ravel().astype(float).tolist()

    truth = float(np.mean(draw(np.random.default_rng(1), 50_000)))
    assert coverage(lambda rng: (draw(rng), groups), truth) >= LEAST
    if confused:
        assert coverage(lambda rng: (draw(rng), None), truth) < 0.9, "the pairs of a ranking are no independent items"


def test_means_of_few_items_are_covered():
    rng = np.random.default_rng(0)
    estimates = [metrics.mean(rng.normal(1, 2, 8)) for _ in range(SAMPLES)]
    assert sum(e.low <= 1 <= e.high for e in estimates) / SAMPLES >= LEAST
