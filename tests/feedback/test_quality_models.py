"""Coefficients, tests and models of feedback quality against other libraries, closed forms and simulations."""

from __future__ import annotations

import math

import choix
import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from samples.feedback import value_counts
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.quality import coefficients, significance
from rlhf_loop.feedback.quality.davidson import davidson
from rlhf_loop.feedback.quality.dawid_skene import dawid_skene
from rlhf_loop.feedback.quality.votes import SWAPPED


def some_counts(units: int = 200, judges: int = 5, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    lean = draw.dirichlet([1, 1, 0.3, 0.2], size=units)
    return np.stack([draw.multinomial(judges, p) for p in lean])


def test_cohen_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    one = draw.integers(0, 4, 300)
    other = np.where(draw.random(300) < 0.6, one, draw.integers(0, 4, 300))
    table = np.bincount(one * 4 + other, minlength=16).reshape(4, 4)
    assert coefficients.cohen_kappa(table) == pytest.approx(cohen_kappa_score(one, other))
    assert np.isnan(coefficients.cohen_kappa(np.diag([5, 0, 0, 0])))


def test_fleiss_is_that_of_statsmodels() -> None:
    counts = some_counts()
    assert coefficients.fleiss_kappa(counts) == pytest.approx(statsmodels_fleiss(counts))


def test_alpha_of_many_is_nearly_fleiss_and_exactly_that_of_its_definition() -> None:
    counts = some_counts(judges=4)
    units = [[value for value, times in enumerate(row) for _ in range(times)] for row in counts]
    n, totals = counts.sum(), counts.sum(0)
    observed = sum(sum(x != y for x in unit for y in unit) / (len(unit) - 1) for unit in units) / n
    expected = sum(totals[i] * totals[j] for i in range(4) for j in range(4) if i != j) / (n * (n - 1))
    assert coefficients.krippendorff_alpha(counts) == pytest.approx(1 - observed / expected)
    assert coefficients.krippendorff_alpha(value_counts(units)) == pytest.approx(1 - observed / expected)
    assert coefficients.krippendorff_alpha(counts) == pytest.approx(coefficients.fleiss_kappa(counts), abs=2e-3)


def test_units_with_one_value_do_not_count() -> None:
    counts = some_counts()
    alone = np.eye(4, dtype=np.int64)[np.random.default_rng(0).integers(0, 4, 50)]
    for coefficient in (coefficients.krippendorff_alpha, coefficients.fleiss_kappa):
        assert coefficient(np.concatenate([counts, alone])) == pytest.approx(coefficient(counts))


def test_coin_flips_agree_as_by_chance_even_where_ids_tell_the_quality() -> None:
    """Both ways around, an order of sides that goes with quality is no chance agreement."""
    draw = np.random.default_rng(0)
    flips = draw.multinomial(2, [0.5, 0.5, 0, 0], size=4000)
    found = coefficients.bootstrap(coefficients.krippendorff_alpha, flips)
    assert found.low < 0 < found.high
    always_first = draw.multinomial(2, [0.95, 0.05, 0, 0], size=4000)
    agreed = 0.95**2 + 0.05**2
    found = coefficients.bootstrap(coefficients.krippendorff_alpha, always_first)
    assert found.value == pytest.approx(2 * agreed - 1, abs=0.02)
    assert coefficients.krippendorff_alpha(always_first) == pytest.approx(0, abs=0.05)


def test_the_bootstrap_by_kinds_is_that_by_pairs_and_covers_the_truth() -> None:
    counts = some_counts(units=150)
    draw = np.random.default_rng(0)
    slow = [coefficients.fleiss_kappa(coefficients.both_ways(counts[draw.integers(0, 150, 150)])) for _ in range(1000)]
    found = coefficients.bootstrap(coefficients.fleiss_kappa, counts)
    assert [found.low, found.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.01)
    truth = coefficients.fleiss_kappa(coefficients.both_ways(some_counts(units=200_000, seed=9)))
    covered = 0
    for seed in range(100):
        found = coefficients.bootstrap(coefficients.fleiss_kappa, some_counts(150, seed=seed + 10), resamples=300)
        covered += found.low <= truth <= found.high
    assert covered >= 87


def test_nothing_to_compare_gives_no_figure() -> None:
    empty = coefficients.bootstrap(coefficients.krippendorff_alpha, np.zeros((0, 4), dtype=np.int64))
    assert (empty.value, empty.n) == (None, 0)
    agreed = coefficients.bootstrap(coefficients.krippendorff_alpha, np.array([[0, 0, 2, 0]] * 3))
    assert agreed.value is None


@pytest.mark.parametrize(("k", "n"), [(3, 10), (5, 10), (0, 7), (60, 100), (5100, 10_000)])
def test_the_sign_test_is_the_exact_binomial_one(k: int, n: int) -> None:
    assert significance.sign_test(k, n) == pytest.approx(scipy.stats.binomtest(k, n).pvalue, rel=1e-9)


def test_intervals_of_many_shares_are_the_exact_ones() -> None:
    k, n = np.array([0, 3, 10, 250, 1, 60_000]), np.array([5, 10, 10, 1000, 1, 100_000])
    low, high = significance.exact_interval(k, n)
    for row in range(len(k)):
        expected = scipy.stats.binomtest(int(k[row]), int(n[row])).proportion_ci(method="exact")
        assert (low[row], high[row]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        one = significance.share(int(k[row]), int(n[row]))
        assert (one.low, one.high, one.p) == (low[row], high[row], significance.sign_test(int(k[row]), int(n[row])))
    assert significance.exact_interval(np.array([0]), np.array([0])) == (0.0, 1.0)
    expected_counts, _ = significance.exact_interval(np.array([2.0, 2.5, 3.0]), np.array([4, 4, 4]))
    assert expected_counts[0] < expected_counts[1] < expected_counts[2]
    assert significance.exact_interval(np.array([4 + 1e-12]), np.array([4]))[1] == 1.0


def test_the_p_value_of_a_change_is_that_of_kolmogorovs_distribution() -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0], [30, 20, 10, 15, 25])
    z = (values - values.mean()) / values.std()
    statistic = np.abs(np.cumsum(z)[:-1]).max() / math.sqrt(len(values))
    assert significance.change(values).p == pytest.approx(scipy.stats.kstwobign.sf(statistic), abs=1e-12)


def test_a_change_is_found_where_it_is_and_seldom_where_there_is_none() -> None:
    draw = np.random.default_rng(0)
    steady = [significance.change(draw.random(400) < 0.7).p for _ in range(400)]
    assert np.mean(np.array(steady) < 0.05) <= 0.07
    changed = significance.change(np.concatenate([draw.random(300) < 0.8, draw.random(200) < 0.55]))
    assert changed.p < 1e-4
    assert 260 < changed.at < 340
    assert (changed.before, changed.after) == (pytest.approx(0.8, abs=0.07), pytest.approx(0.55, abs=0.1))
    assert significance.change(np.ones(50)) is None
    assert significance.change(np.zeros(5)) is None


def test_the_logistic_regression_is_that_of_statsmodels() -> None:
    draw = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 10)
    x = draw.normal(size=(600, 2))
    y = (draw.random(600) < 1 / (1 + np.exp(-(x @ [0.5, -1.0]) - draw.normal(size=60)[clusters]))).astype(float)
    fitted = significance.logistic_regression(x, y, clusters)
    model = sm.GLM(y, x, family=sm.families.Binomial())
    expected = model.fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    assert fitted is not None
    assert fitted[0] == pytest.approx(expected.params, rel=1e-6)
    assert fitted[1] == pytest.approx(expected.bse, rel=1e-6)
    assert significance.logistic_regression(np.ones((30, 1)), np.ones(30), np.arange(30)) is None
    twice = np.stack([x[:, 0], x[:, 0]], axis=1)
    assert significance.logistic_regression(twice, y, clusters) is None


def crowd(units: int = 4000, annotators: int = 25, votes: int = 5, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Simulated annotators with confusion matrices that are known, and the true values."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(4, units, p=[0.4, 0.4, 0.15, 0.05])
    skill = draw.uniform(0.4, 0.95, annotators)
    confusion = np.zeros((annotators, 4, 4))
    for a in range(annotators):
        wrong = draw.dirichlet([2, 2, 2])
        for k in (0, 2, 3):
            confusion[a, k] = np.insert(wrong * (1 - skill[a]), k, skill[a])
        confusion[a, 1] = confusion[a, 0][SWAPPED]
        for k in (2, 3):  # a tie says nothing of the sides
            confusion[a, k, :2] = confusion[a, k, :2].mean()
    unit = np.repeat(np.arange(units), votes)
    annotator = np.concatenate([draw.choice(annotators, votes, replace=False) for _ in range(units)])
    edges = confusion[annotator, truth[unit]].cumsum(1)
    value = np.minimum((draw.random(len(unit))[:, None] > edges).sum(1), 3)
    return unit, annotator, value, truth, confusion


def test_dawid_and_skene_find_the_confusion_and_beat_the_majority() -> None:
    unit, annotator, value, truth, confusion = crowd()
    found = dawid_skene(unit, annotator, value, units=len(truth), annotators=25, values=4, swapped=SWAPPED)
    assert found.converged
    common = np.abs(found.confusion - confusion)[:, :2]  # values that are frequent enough to be sure
    assert common.mean() < 0.02
    assert found.prevalence == pytest.approx([0.4, 0.4, 0.15, 0.05], abs=0.03)
    expected = np.einsum("k,akk->a", [0.4, 0.4, 0.15, 0.05], confusion)
    assert np.abs(found.accuracy - expected).max() < 0.06
    counts = np.bincount(unit * 4 + value, minlength=4 * len(truth)).reshape(-1, 4)
    right = (found.posterior.argmax(1) == truth).mean()
    assert right > (counts.argmax(1) == truth).mean() + 0.02
    sure = found.posterior.max(1)
    assert right == pytest.approx(sure.mean(), abs=0.02)  # it knows how sure it can be


@pytest.mark.parametrize("pseudo_votes", [0.0, 4.0])
@pytest.mark.parametrize("swapped", [None, SWAPPED])
def test_the_likelihood_never_falls(pseudo_votes: float, swapped: np.ndarray | None) -> None:
    unit, annotator, value, truth, _ = crowd(units=300)
    found = dawid_skene(
        unit, annotator, value, units=len(truth), annotators=25, values=4,
        swapped=swapped, pseudo_votes=pseudo_votes, tolerance=0.0, most_iterations=150,
    )  # fmt: skip
    steps = np.diff(found.objective)
    assert steps.min() > -1e-7 * abs(found.objective[-1])
    assert steps[0] > 1


def test_turning_pairs_around_changes_nothing() -> None:
    unit, annotator, value, truth, _ = crowd(units=300)
    shape = {"units": len(truth), "annotators": 25, "values": 4, "swapped": SWAPPED}
    one = dawid_skene(unit, annotator, value, **shape)
    turned = np.random.default_rng(1).random(len(truth)) < 0.5
    other = dawid_skene(unit, annotator, np.where(turned[unit], SWAPPED[value], value), **shape)
    assert other.confusion == pytest.approx(one.confusion, abs=1e-9)
    assert np.where(turned[:, None], other.posterior[:, SWAPPED], other.posterior) == pytest.approx(
        one.posterior, abs=1e-9
    )


def test_one_vote_each_is_taken_as_it_is() -> None:
    found = dawid_skene(
        np.arange(6), np.zeros(6, dtype=int), np.array([0, 1, 0, 1, 0, 1]), units=6, annotators=1, values=4,
        swapped=SWAPPED,
    )  # fmt: skip
    assert found.posterior.argmax(1).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.slow
def test_a_million_votes_take_seconds() -> None:
    import time

    draw = np.random.default_rng(0)
    units, annotators = 300_000, 500
    truth = draw.integers(0, 4, units)
    unit, annotator = np.repeat(np.arange(units), 4)[:1_000_000], draw.integers(0, annotators, 1_000_000)
    skill = draw.uniform(0.5, 0.95, annotators)
    value = np.where(draw.random(len(unit)) < skill[annotator], truth[unit], draw.integers(0, 4, len(unit)))
    started = time.process_time()
    found = dawid_skene(unit, annotator, value, units=units, annotators=annotators, values=4, swapped=SWAPPED)
    assert time.process_time() - started < 30
    assert found.converged
    assert np.abs(found.accuracy - (skill + (1 - skill) / 4)).max() < 0.03


def edges(wins: np.ndarray) -> tuple[np.ndarray, ...]:
    first, second = np.triu_indices(len(wins), 1)
    return first, second, wins[first, second], wins[second, first]


def test_without_ties_strengths_are_those_of_choix() -> None:
    draw = np.random.default_rng(0)
    true = draw.normal(size=7)
    data, wins = [], np.zeros((7, 7))
    for _ in range(300):
        i, j = draw.choice(7, 2, replace=False)
        i, j = (i, j) if draw.random() < 1 / (1 + math.exp(true[j] - true[i])) else (j, i)
        data.append((i, j))
        wins[i, j] += 1
    first, second, won, lost = edges(wins)
    found = davidson(first, second, won, lost, np.zeros(len(won)), answers=7, penalty=0.3)
    assert found.nu == 0
    assert found.theta == pytest.approx(choix.opt_pairwise(7, data, alpha=0.3, tol=1e-12), abs=1e-7)
    free = davidson(first, second, won, lost, np.zeros(len(won)), answers=7, penalty=0.0)
    assert free.theta - free.theta.mean() == pytest.approx(choix.ilsr_pairwise(7, data), abs=1e-6)
    assert found.outcomes(first, second)[:, 0] == pytest.approx(found.preference(first, second))


@pytest.mark.parametrize(("wins", "losses", "ties"), [(6, 2, 3), (1, 9, 4), (2.5, 0.5, 1.25)])
def test_two_answers_have_the_closed_form(wins: float, losses: float, ties: float) -> None:
    """Davidson (1970): pi_1 / pi_2 = n_1 / n_2 and nu = n_0 / sqrt(n_1 n_2); the shares are met exactly."""
    columns = [np.array([float(x)]) for x in (wins, losses, ties)]
    one, other = np.array([0]), np.array([1])
    found = davidson(one, other, *columns, answers=2, penalty=0.0)
    assert found.theta[0] - found.theta[1] == pytest.approx(math.log(wins / losses))
    assert found.nu == pytest.approx(ties / math.sqrt(wins * losses))
    shares = np.array([wins, losses, ties]) / (wins + losses + ties)
    assert found.outcomes(one, other)[0] == pytest.approx(shares)


def test_strengths_with_ties_minimise_the_penalised_loss() -> None:
    """Against a general optimiser, on two prompts that share only nu."""
    draw = np.random.default_rng(3)
    first, second = np.array([0, 0, 1, 3, 3, 4]), np.array([1, 2, 2, 4, 5, 5])
    wins, losses, ties = draw.uniform(0, 5, (3, 6))

    def loss(x: np.ndarray) -> float:
        theta, eta = x[:-1], x[-1]
        total = 0.0
        for i, j, w, l, t in zip(first, second, wins, losses, ties, strict=True):  # noqa: E741
            a, b, c = theta[i], theta[j], eta + (theta[i] + theta[j]) / 2
            total += (w + l + t) * math.log(math.exp(a) + math.exp(b) + math.exp(c)) - w * a - l * b - t * c
        return total + 0.3 * float(x @ x)

    best = scipy.optimize.minimize(loss, np.zeros(7), tol=1e-12)
    found = davidson(first, second, wins, losses, ties, answers=6, penalty=0.3)
    assert found.theta == pytest.approx(best.x[:-1], abs=1e-5)
    assert math.log(found.nu) == pytest.approx(best.x[-1], abs=1e-5)


def test_an_answer_that_always_wins_needs_a_penalty() -> None:
    one, other, zero = np.array([0]), np.array([1]), np.array([0.0])
    with pytest.raises(UserError, match="penalty"):
        davidson(one, other, np.array([3.0]), zero, zero, answers=2, penalty=0.0)
    found = davidson(one, other, np.array([3.0]), zero, zero, answers=2)
    assert 0.7 < found.preference(one, other)[0] < 0.95
    even = davidson(one, other, zero, zero, np.array([4.0]), answers=2)
    assert even.preference(one, other)[0] == pytest.approx(0.5)
