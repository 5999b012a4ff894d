"""Means over prompts and seeds, and Holm's correction, against closed forms and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlhf_loop.comparison.paired import crossed_mean, holm


def test_with_one_seed_it_is_the_t_test_over_prompts() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, size=(1, 40))
    found = crossed_mean(values, 0.9)
    test = stats.ttest_1samp(values[0], 0)
    interval = test.confidence_interval(0.9)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.mean, found.seeds, found.prompts) == (pytest.approx(values.mean()), 1, 40)


def test_where_only_seeds_differ_it_is_the_t_test_over_seeds() -> None:
    of_seeds = np.array([0.1, 0.3, 0.35])
    found = crossed_mean(np.repeat(of_seeds[:, None], 50, axis=1))
    test = stats.ttest_1samp(of_seeds, 0)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_mean_squares_and_degrees_of_freedom_are_those_of_a_table_worked_by_hand() -> None:
    # Seeds' means 2 and 4, prompts' means 1, 3 and 5, mean 3; the rest is +-1, 0, +-1.
    values = np.array([[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]])
    of_seeds, of_prompts, rest = 3 * 2 / 1, 2 * 8 / 2, (1 + 0 + 1 + 1 + 0 + 1) / 2
    total = of_seeds + of_prompts - rest
    freedom = total**2 / (of_seeds**2 / 1 + of_prompts**2 / 2 + rest**2 / 2)
    error = np.sqrt(total / 6)
    found = crossed_mean(values)
    assert found.mean == pytest.approx(3)
    assert found.p == pytest.approx(2 * stats.t.sf(3 / error, freedom))
    assert found.high == pytest.approx(3 + stats.t.ppf(0.975, freedom) * error)


def test_a_negative_component_makes_nobody_surer_than_prompts_alone_would() -> None:
    values = np.random.default_rng(1).normal(size=(3, 30))
    values -= values.mean(1, keepdims=True)  # the seeds agree more closely than chance would have them
    found = crossed_mean(values)
    assert found.high is not None
    of_prompts = stats.sem(values.mean(0))
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 29) * of_prompts)


def test_equal_values_show_no_difference_and_one_prompt_says_nothing() -> None:
    assert crossed_mean(np.zeros((3, 20))).p == 1.0
    one = crossed_mean(np.array([[0.4]]))
    assert (one.mean, one.low, one.high, one.p) == (0.4, None, None, None)


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        values = generator.uniform(0, 0.2, size=size).tolist()
        assert holm(values) == pytest.approx(multitest.multipletests(values, method="holm")[1].tolist())
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_intervals_cover_the_truth_where_seeds_differ_by_more_than_their_answers_do() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        seeds, prompts = generator.normal(size=(3, 1)), generator.normal(size=(1, 48))
        found = crossed_mean(0.3 * seeds + 0.3 * prompts + generator.normal(size=(3, 48)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert 0.91 < covered / 400 < 0.99
