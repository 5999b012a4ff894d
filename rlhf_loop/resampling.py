"""Intervals from resampling whole groups: what is said of one prompt shares texts, and is not independent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_DRAWN = 2**25  # numbers in memory at a time


def resampled_ratios(totals: NDArray[Any], sizes: NDArray[Any], *, seed: int, resamples: int) -> Floats:
    """(resamples,) the sum of `totals` (G,) over the sum of `sizes` (G,) of G groups drawn with replacement; of several
    totals (G, T) with sizes (G, 1) at once (resamples, T).

    Groups are drawn, not what is in them (Field and Welsh 2007). NaN where the drawn groups' sizes add up to 0. The
    same `seed` draws the same groups of as many.
    """
    groups = len(sizes)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, step := max(1, MOST_DRAWN // groups)):
        # (rows, G): how often each group is drawn
        drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=min(step, resamples - start))
        with np.errstate(invalid="ignore"):
            found.append((drawn @ totals) / (drawn @ sizes))
    return np.concatenate(found)


def percentile_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of resampled values (Efron and Tibshirani 1993, chapter 13)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def grouped_mean(
    values: Sequence[float], groups: Sequence[str], *, seed: int = 0, confidence: float = 0.95, resamples: int = 2000
) -> dict[str, Any] | None:
    """`{mean, low, high, n}` of values (N,), whole groups resampled; `groups[i]` names what value i is of. None without
    values; without an interval (`low` and `high` None) where all are of one group."""
    if not len(values):
        return None
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    totals, sizes = np.bincount(member, weights=np.asarray(values, dtype=np.float64)), np.bincount(member)
    mean = float(totals.sum() / sizes.sum())
    if len(sizes) < 2:
        return {"mean": mean, "low": None, "high": None, "n": len(values)}
    drawn = resampled_ratios(totals, sizes.astype(np.float64), seed=seed, resamples=resamples)
    low, high = percentile_interval(drawn, confidence)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}
