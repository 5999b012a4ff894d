"""Coefficients of agreement corrected for chance, and their bootstrap intervals.

All take counts (U, K): how many annotators gave each of U units (pairs of answers) each of K values. 1 is perfect
agreement, 0 is what chance gives, below 0 is worse than chance. They do not look at who said what, save Cohen's,
which takes the table of two annotators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.votes import SWAPPED, Votes

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

RESAMPLES = 1000
MOST_JUDGES = 50  # of a pair, when annotators are compared two by two: their number grows with its square


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its 95% interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int  # what was resampled: pairs judged by several annotators


def krippendorff_alpha(counts: Counts, weights: NDArray[Any] | None = None) -> Any:
    """Krippendorff's alpha for nominal values; units with fewer than two values do not count.

    alpha = 1 - D_o / D_e with D_o = sum over units of (pairs of unlike values) / (m_u - 1) / n and
    D_e = (pairs of unlike values among all n) / (n (n - 1)); K. Krippendorff, Computing Krippendorff's
    Alpha-Reliability (2011), section C. `weights` (..., U) says how often each unit counts (default once); the result
    has its leading shape. NaN with fewer than two values to compare, or only one value in use.
    """
    m = counts.sum(1)
    shared = m > 1
    counts, m = counts[shared].astype(np.float64), m[shared].astype(np.float64)
    weights = np.ones(len(m)) if weights is None else np.asarray(weights, dtype=np.float64)[..., shared]
    unlike = (m**2 - (counts**2).sum(1)) / np.maximum(m - 1, 1)
    observed = weights @ unlike
    totals = weights @ counts  # (..., K)
    n = weights @ m
    expected = n**2 - (totals**2).sum(-1)
    return _one_minus((n - 1) * observed, expected)


def fleiss_kappa(counts: Counts, weights: NDArray[Any] | None = None) -> Any:
    """Fleiss' kappa (1971), (P - P_e) / (1 - P_e): P is the mean over units of the share of agreeing pairs of values.

    Fleiss has the same number of annotators on each unit; here each unit has its own, as long as there are two.
    `weights` and result as for `krippendorff_alpha`.
    """
    m = counts.sum(1)
    shared = m > 1
    counts, m = counts[shared].astype(np.float64), m[shared].astype(np.float64)
    weights = np.ones(len(m)) if weights is None else np.asarray(weights, dtype=np.float64)[..., shared]
    agreeing = (counts * (counts - 1)).sum(1) / np.maximum(m * (m - 1), 1)
    units = weights.sum(-1)
    observed = _ratio(weights @ agreeing, units)
    totals = weights @ counts
    by_chance = ((totals / np.maximum(totals.sum(-1, keepdims=True), 1e-300)) ** 2).sum(-1)
    return _one_minus(1 - observed, 1 - by_chance)


def cohen_kappa(table: NDArray[Any]) -> Any:
    """Cohen's kappa (1960) of a table (..., K, K): how often two annotators gave each two values. NaN if undefined."""
    table = np.asarray(table, dtype=np.float64)
    total = table.sum((-2, -1))
    observed = _ratio(np.trace(table, axis1=-2, axis2=-1), total)
    by_chance = _ratio((table.sum(-1) * table.sum(-2)).sum(-1), total**2)
    return _one_minus(1 - observed, 1 - by_chance)


def verdict_counts(votes: Votes) -> Counts:
    """(U, 4) how many annotators gave each pair each verdict; each annotator counts with the last one."""
    last = votes.last_of_each()
    return np.bincount(last.unit * 4 + last.verdict, minlength=4 * votes.units).reshape(-1, 4)


def both_ways(counts: Counts) -> Counts:
    """Counts (U, 4) of verdicts and, below, the same pairs with their sides exchanged.

    Which side of a pair is called the first means nothing, so by chance both must be equally frequent. Otherwise an
    order that goes with quality (ids that end in -chosen and -rejected) would leave nothing for annotators to agree on.
    """
    return np.concatenate([counts, counts[:, SWAPPED]])


def bootstrap(
    coefficient: Callable[..., Any],
    counts: Counts,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The coefficient of units (U, K) with a percentile interval from resampling units (Efron 1979).

    Units with the same counts are alike, so how often each kind is drawn is multinomial: the cost does not grow with
    the number of units. The columns are verdicts, whose sides are exchangeable (`both_ways`).
    """
    counts = counts[counts.sum(1) > 1]
    if not len(counts):
        return Estimate(value=None, low=None, high=None, n=0)
    kinds, frequency = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), frequency / len(counts), size=resamples)
    kinds, frequency, draws = both_ways(kinds), np.tile(frequency, 2), np.tile(draws, (1, 2))
    return estimate(coefficient(kinds, frequency), coefficient(kinds, draws), len(counts))


def bootstrap_kappa(table: Counts, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Cohen's kappa of a table (4, 4) of verdicts, sides exchangeable, with a percentile interval."""
    n = int(table.sum())
    if not n:
        return Estimate(value=None, low=None, high=None, n=0)
    draws = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=resamples).reshape(-1, *table.shape)
    return estimate(cohen_kappa(symmetric(table)), cohen_kappa(symmetric(draws)), n)


def estimate(value: Any, resampled: Floats, n: int) -> Estimate:
    """A value with the 2.5% and 97.5% quantiles of its resamples."""
    known = resampled[np.isfinite(resampled)]
    if not np.isfinite(value):
        return Estimate(value=None, low=None, high=None, n=n)
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (None, None)
    return Estimate(value=float(value), low=low and float(low), high=high and float(high), n=n)


def comparisons(votes: Votes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every two annotators who judged one pair: rows of `votes` (C,), (C,), in order of time within a pair.

    `votes` must hold one verdict for each annotator and pair. Of a pair with more than `MOST_JUDGES` judges the first
    so many are compared.
    """
    order = np.lexsort((votes.time, votes.unit))
    unit = votes.unit[order]
    starts = np.flatnonzero(np.concatenate([[True], unit[1:] != unit[:-1]])) if len(unit) else np.array([], np.int64)
    place = np.arange(len(unit)) - np.repeat(starts, np.diff(np.append(starts, len(unit))))
    order, unit = order[place < MOST_JUDGES], unit[place < MOST_JUDGES]
    earlier, later = [], []
    for gap in range(1, MOST_JUDGES):
        same = np.flatnonzero(unit[gap:] == unit[:-gap]) if gap < len(unit) else np.array([], np.int64)
        if not len(same):
            break
        earlier.append(order[same])
        later.append(order[same + gap])
    empty = np.array([], dtype=np.int64)
    return (np.concatenate(earlier), np.concatenate(later)) if earlier else (empty, empty)


def symmetric(table: NDArray[Any]) -> NDArray[Any]:
    """Tables (..., 4, 4) of verdicts and, added to them, the same with the sides of each pair exchanged."""
    return np.asarray(table + table[..., SWAPPED, :][..., SWAPPED])


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(above, below)


def _one_minus(above: Any, below: Any) -> Any:
    """1 - above / below; NaN where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(below) > 1e-12, 1 - np.true_divide(above, below), np.nan)
