"""Measures equal hand-computed cases, and their intervals cover what they should."""

import math
import random

import pytest

from llmrecipes import metrics
from llmrecipes.intervals import exact_interval


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one():
    rng = random.Random(1)
    values = [rng.gauss(3, 2) for _ in range(400)]
    estimate = metrics.mean(values)
    spread = 1.96 * (sum((v - estimate.value) ** 2 for v in values) / 400) ** 0.5 / 20
    assert estimate.value == pytest.approx(sum(values) / 400)
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - spread, estimate.value + spread), abs=0.03)


def test_ratio_weighs_long_items_more_than_short_ones():
    assert metrics.ratio([10.0, 1.0], [10.0, 4.0]).value == pytest.approx(11 / 14)


def test_intervals_are_the_same_each_time():
    assert metrics.mean([1.0, 2.0, 5.0]) == metrics.mean([1.0, 2.0, 5.0])


def test_win_rate_counts_ties_half():
    estimate = metrics.win_rate([1.0, 0.5, 0.2, 0.9], [0.5, 0.5, 0.3, 0.1])  # win, tie, loss, win
    assert estimate.value == pytest.approx(2.5 / 4) and estimate.n == 4
    tied = metrics.win_rate([0.3] * 9, [0.3] * 9)
    assert tied.value == 0.5 and tied.low < 0.35 and tied.high == 1 - tied.low, "nine ties tell little"


def test_win_rate_of_nothing_but_wins_or_losses_is_not_certain():
    assert metrics.win_rate([1.0] * 20, [0.0] * 20) == metrics.accuracy([True] * 20)
    assert metrics.win_rate([0.0] * 20, [1.0] * 20) == metrics.accuracy([False] * 20)


def test_win_rate_against_oneself_swapped_adds_up_to_one():
    rng = random.Random(0)
    one, other = ([rng.randint(0, 3) for _ in range(50)] for _ in range(2))
    assert metrics.win_rate(one, other).value + metrics.win_rate(other, one).value == pytest.approx(1.0)


def test_pair_accuracy_of_a_constant_score_is_one_half():
    assert metrics.pair_accuracy([1.0] * 4, [1.0] * 4).value == 0.5
    assert metrics.pair_accuracy([2.0, 1.0, 1.0], [1.0, 2.0, 0.0]).value == pytest.approx(2 / 3)


def test_agreement_and_tau_of_equal_reversed_and_tied_ranks():
    assert metrics.pair_agreement([0, 1, 2], [5, 6, 9]) == metrics.kendall_tau([0, 1, 2], [5, 6, 9]) == 1.0
    assert metrics.pair_agreement([0, 1, 2], [2, 1, 0]) == 0.0 and metrics.kendall_tau([0, 1, 2], [2, 1, 0]) == -1.0
    assert metrics.pair_agreement([0, 0], [0, 1]) is None and metrics.kendall_tau([0, 0], [0, 1]) is None
    # One of five pairs discordant, one tied by the first: (4 - 1) / sqrt((6 - 1) * 6).
    assert metrics.kendall_tau([1, 1, 2, 3], [1, 2, 4, 3]) == pytest.approx((4 - 1) / math.sqrt(5 * 6))


@pytest.mark.parametrize(
    "measure",
    [
        lambda: metrics.mean([]),
        lambda: metrics.accuracy([]),
        lambda: metrics.win_rate([1.0], []),
    ],
)
def test_measures_of_nothing_are_refused(measure):
    with pytest.raises(ValueError):
        measure()


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    # Bin (0.8, 0.9]: confidence 0.9, accuracy 1/2, gap 0.4 on 2 of 3; bin (0.1, 0.2]: 0.2, accuracy 0, gap 0.2 on 1 of 3.
    assert metrics.calibration_error([0.9, 0.9, 0.2], [True, False, False]) == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert metrics.calibration_error([1.0, 0.0], [True, False]) == 0.0
    for confidences, hits in (([], []), ([1.2], [True]), ([0.5], [])):
        with pytest.raises(ValueError):
            metrics.calibration_error(confidences, hits)


def test_mcnemar_counts_only_items_on_which_the_two_differ():
    # 1 against 5 differing items: 2 * (1 + 6) / 64.
    first, second = [1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0]
    assert metrics.mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
    assert metrics.mcnemar([1, 1], [1, 1]) == (0, 0, 1.0)
    by_measure = [{"a": first, "gold": [0.5] * len(first), "one": first}, {"a": second, "gold": [0.1] * len(first)}]
    assert metrics.mcnemar_by_measure(*by_measure) == {"a": pytest.approx(14 / 64)}
    assert metrics.mcnemar_by_measure({"a": [None, 1, None]}, {"a": [1, 0, 0]}) == {"a": 1.0}
    assert metrics.mcnemar_by_measure({"a": [None]}, {"a": [1]}) == {}


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("pair_accuracy", [2.0, 1.0, 1.0], [1.0, 2.0, 0.0], {"value": 2 / 3, "n": 3}),
        ("win_rate", [1.0, 0.5, 0.2, 0.9], [0.5, 0.5, 0.3, 0.1], {"value": 2.5 / 4, "n": 4}),
        ("bits_per_byte", [7 * math.log(2), 5 * math.log(2)], [7, 1], {"value": 12 / 8, "n": 2}),
        ("calibration_error", [0.9, 0.9, 0.2], [True, False, False], {"calibration_error": 1 / 3}),
        ("mcnemar", [True] + [False] * 5, [False] + [True] * 5, {"only_first": 1, "only_second": 5, "p_value": 14 / 64}),
    ],
)
def test_measures_load_by_evaluate_offline_and_take_groups(name, predictions, references, expected):
    import evaluate

    measure = evaluate.load(f"llmrecipes/hf_metrics/{name}")
    got = measure.compute(predictions=predictions, references=references)
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    if name != "calibration_error":
        twice = [[value for value in side for _ in range(4)] for side in (predictions, references)]
        groups = [i // 4 for i in range(len(twice[0]))]
        grouped = measure.compute(predictions=twice[0], references=twice[1], groups=groups)
        same = ("p_value",) if name == "mcnemar" else ("value", "low", "high")
        assert {key: grouped[key] for key in same} == pytest.approx({key: got[key] for key in same})


def test_bootstrap_interval_covers_the_truth_in_about_95_of_100_samples():
    rng = random.Random(2)
    estimates = [metrics.mean([rng.gauss(1, 2) for _ in range(60)]) for _ in range(300)]
    assert 0.90 <= sum(e.low <= 1 <= e.high for e in estimates) / 300 <= 0.985


def test_bradley_terry_finds_known_strengths():
    """Votes drawn from known strengths: the fit finds them, a model that never loses stays finite."""
    import random

    from llmrecipes.metrics import bradley_terry

    true, rng = {"a": 1150.0, "b": 1000.0, "c": 850.0}, random.Random(0)
    votes = []
    for _ in range(3000):
        one, other = rng.sample(list(true), 2)
        votes.append((one, other, float(rng.random() < 1 / (1 + 10 ** ((true[other] - true[one]) / 400)))))
    fitted = bradley_terry(votes)
    for name, value in true.items():
        assert abs(fitted[name].value - value) < 25 and fitted[name].low < value < fitted[name].high
    assert sum(e.n for e in fitted.values()) == 6000
    few = bradley_terry([("a", "b", 1.0)] * 2)
    assert few["a"].low < 1000 < few["a"].high, "two votes decide nothing"
    unbeaten = bradley_terry([("a", "b", 1.0)] * 20)
    assert unbeaten["a"].low > 1000
    assert 1100 < unbeaten["a"].value < 2000 and unbeaten["b"].value < 900
    tied = bradley_terry([("a", "b", 0.5)] * 20)
    assert abs(tied["a"].value - 1000) < 1e-6 and bradley_terry([]) == {}


def test_wordings_of_one_question_count_as_one_in_intervals_and_tests():
    hits, questions = [True, True, False, True], ["a", "a", None, None]
    # The one false item says nothing of its group, so that they are taken to be alike: 2, 1 and 1, 16 / 6 items.
    assert metrics.accuracy(hits, questions) == pytest.approx((0.75, *exact_interval(0.75 * 16 / 6, 16 / 6), 4))
    assert metrics.accuracy([True] * 60, [i // 3 for i in range(60)])[1:] == (*metrics.accuracy([True] * 20)[1:3], 60)
    assert metrics.accuracy(hits, [None] * 4) == metrics.accuracy(hits)
    half = [True, False] * 10  # wordings that are not alike: as many items as answers
    assert metrics.accuracy(half, [i // 2 for i in range(20)]) == metrics.accuracy(half)
    values = [1.0, 2.0, 5.0, 1.0]
    assert metrics.mean(values, groups=[None] * 4) == metrics.mean(values)
    doubled = metrics.mean([value for value in values for _ in range(2)], groups=[i // 2 for i in range(8)])
    assert doubled == metrics.mean(values)._replace(n=8)
    assert metrics.win_rate([1.0] * 6, [0.0] * 6, groups=list("aabbcc"))[1:3] == metrics.accuracy([True] * 3)[1:3]
    # Three questions in two wordings each, all six right against all wrong: 2 / 2^3, not 2 / 2^6.
    first, second = {"a": [1] * 6}, {"a": [0] * 6}
    assert metrics.mcnemar_by_measure(first, second, {"a": list("xxyyzz")}) == {"a": 0.25}
    assert metrics.mcnemar_by_measure(first, second) == {"a": 2 / 64}
    # Sizes 2, 1, 1 with sum 2: of the sums 4 0 2 2 and their mirror images six of eight are as far from 0.
    assert metrics.sign_flip_test([2, 1, -1]) == 6 / 8 and metrics.sign_flip_test([]) == 1.0
