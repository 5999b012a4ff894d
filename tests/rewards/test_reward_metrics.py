"""Measures of a reward model against closed forms and independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_loop.rewards.metrics import (
    cluster_bootstrap,
    expected_calibration_error,
    length_balanced_accuracy,
    log_loss,
    preference_metrics,
    spearman,
)


def test_preferring_the_longer_side_is_half_right_when_balanced_by_length():
    difference = np.array([3, 5, 2, -1, 4, -7])
    won = (difference > 0).astype(float)
    assert length_balanced_accuracy(won, difference) == 0.5
    assert length_balanced_accuracy([1, 0, 1, 0.5], [1, 1, -1, -1]) == pytest.approx((0.5 + 0.75) / 2)


def test_balanced_accuracy_needs_pairs_of_both_kinds_and_ignores_equal_lengths():
    assert length_balanced_accuracy([1, 1], [2, 3]) is None
    assert length_balanced_accuracy([1, 0, 0], [2, -3, 0]) == 0.5


def test_calibration_error_of_a_perfectly_calibrated_model_is_zero():
    margin = math.log(0.8 / 0.2)  # says 80%, is right 8 times in 10
    error, bins = expected_calibration_error([margin] * 8 + [-margin] * 2)
    assert error == pytest.approx(0)
    assert bins == [{"confidence": pytest.approx(0.8), "accuracy": 0.8, "n": 10}]


def test_calibration_error_adds_the_gap_of_each_bin_by_its_share():
    sure, unsure = math.log(0.95 / 0.05), math.log(0.55 / 0.45)
    error, bins = expected_calibration_error([sure, -sure, unsure, unsure])
    assert error == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.55))
    assert [row["n"] for row in bins] == [2, 2]


def test_calibration_error_equals_that_of_the_probability_taken_both_ways_around():
    margins = np.random.default_rng(0).normal(0.5, 2, size=400)
    probability = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    label = np.concatenate([np.ones(400), np.zeros(400)])
    both_ways = 0.0
    for low in np.arange(10) / 10:
        inside = (probability >= low) & (probability < low + 0.1)
        both_ways += abs(label[inside].mean() - probability[inside].mean()) * inside.mean() if inside.any() else 0
    assert expected_calibration_error(margins)[0] == pytest.approx(both_ways)


def test_calibration_survives_margins_of_any_size():
    error, bins = expected_calibration_error([1000.0, -1000.0])
    assert error == pytest.approx(0.5)
    assert bins[0]["n"] == 2


def test_spearman_is_one_for_any_rising_curve_and_shares_ranks_of_ties():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman([1, 2, 2, 3], x) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_interval_covers_the_truth_and_widens_when_pairs_of_a_group_agree():
    draw = np.random.default_rng(1)
    won = np.repeat(draw.random(40) < 0.7, 25).astype(float)  # 40 groups, each all right or all wrong
    apart = cluster_bootstrap([won], np.arange(1000))
    together = cluster_bootstrap([won], np.repeat(np.arange(40), 25))
    assert apart["mean"] == together["mean"]
    # the standard error of 40 groups is sqrt(25) times that of 1000 independent pairs
    ratio = (together["high"] - together["low"]) / (apart["high"] - apart["low"])
    assert ratio == pytest.approx(5, rel=0.15)
    assert together["low"] < 0.7 < together["high"]


def test_one_group_has_no_interval():
    result = cluster_bootstrap([np.full(5, 5.0)], np.zeros(5, dtype=np.int64))
    assert (result["mean"], result["low"], result["high"], result["groups"]) == (5.0, None, None, 1)


def test_the_interval_of_balanced_accuracy_is_that_of_resampling_rows_of_groups():
    draw = np.random.default_rng(2)
    won, difference = (draw.random(300) < 0.6).astype(float), draw.integers(-9, 10, 300).astype(float)
    groups = draw.integers(0, 60, 300)
    metrics = preference_metrics(won, 1 - won, [str(g) for g in groups], 50 + difference, np.full(300, 50.0))
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    slow = []
    for _ in range(4000):
        drawn = np.concatenate([rows[g] for g in draw.integers(0, len(rows), len(rows))])
        longer, shorter = (won[drawn][side] for side in (difference[drawn] > 0, difference[drawn] < 0))
        slow.append((longer.mean() + shorter.mean()) / 2)
    found = metrics["length_balanced_accuracy"]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.01)
    assert found["mean"] == length_balanced_accuracy(won, difference)
    assert (found["n"], found["groups"]) == (300, len(rows))


def test_ties_count_half_and_lengths_are_reported():
    metrics = preference_metrics([1, 0, 2], [0, 0, 3], ["a", "b", "b"], [10, 5, 7], [5, 10, 9], seed=0)
    assert metrics["accuracy"]["mean"] == pytest.approx(0.5)
    assert metrics["longer_wins"] == pytest.approx(1 / 3)
    assert metrics["mean_margin"] == pytest.approx(0)
    assert metrics["accuracy"]["groups"] == 2


def test_bootstrap_is_a_function_of_the_seed():
    arguments = ([1, 0, 2, 4], [0, 1, 3, 1], ["a", "b", "c", "d"], [1, 2, 3, 4], [4, 3, 2, 1])
    assert preference_metrics(*arguments, seed=3) == preference_metrics(*arguments, seed=3)


def test_log_loss_of_knowing_nothing_is_log_two():
    assert log_loss([0, 0, 0]) == pytest.approx(math.log(2))
    assert log_loss([1000.0]) == pytest.approx(0)
