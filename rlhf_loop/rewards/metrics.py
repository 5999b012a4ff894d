"""How good a reward model is on pairs it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_loop.resampling import percentile_interval, resampled_ratios

Floats = NDArray[np.float64]


def preference_metrics(
    chosen: ArrayLike,
    rejected: ArrayLike,
    groups: Sequence[str],
    chosen_words: ArrayLike,
    rejected_words: ArrayLike,
    *,
    seed: int = 0,
    bootstrap: int = 2000,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """All measures at once, from rewards (P,) of the chosen and rejected sides of P pairs and their lengths in words.

    Gives `accuracy` and `length_balanced_accuracy` as `{mean, low, high, n, groups}`, `longer_wins` (the accuracy of
    always preferring the longer side), `ece`, `calibration` (its bins), `length_correlation` and `mean_margin`.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    margins = chosen - rejected
    won = (margins > 0) + 0.5 * (margins == 0)
    difference = np.asarray(chosen_words, dtype=np.float64) - np.asarray(rejected_words, dtype=np.float64)
    clusters = _cluster_numbers(groups)
    settings: dict[str, Any] = {"seed": seed, "bootstrap": bootstrap, "confidence": confidence}
    words = np.concatenate([np.asarray(chosen_words), np.asarray(rejected_words)])
    ece, bins = expected_calibration_error(margins)
    return {
        "accuracy": cluster_bootstrap([won], clusters, **settings),
        "length_balanced_accuracy": cluster_bootstrap(_by_length(won, difference), clusters, **settings),
        "longer_wins": float(np.mean((difference > 0) + 0.5 * (difference == 0))) if len(margins) else None,
        "ece": ece,
        "calibration": bins,
        "length_correlation": spearman(np.concatenate([chosen, rejected]), words),
        "mean_margin": float(margins.mean()) if len(margins) else None,
    }


def length_balanced_accuracy(won: ArrayLike, difference: ArrayLike) -> float | None:
    """The mean of two accuracies: where the longer side was preferred, and where the shorter one was.

    `won`: 1, 0 or 0.5 (a tie) for each pair; `difference`: words of the preferred side less words of the other.
    Preferring the longer side always gives 0.5. Pairs of equal length are left out; None when either kind is missing.
    """
    parts = _by_length(np.asarray(won, dtype=np.float64), np.asarray(difference, dtype=np.float64))
    return _mean_of_means(parts)


def _by_length(won: Floats, difference: Floats) -> list[Floats]:
    """The pairs whose preferred side is longer, and those whose is shorter; NaN elsewhere."""
    return [np.where(of, won, np.nan) for of in (difference > 0, difference < 0)]


def expected_calibration_error(margins: ArrayLike, bins: int = 10) -> tuple[float | None, list[dict[str, float]]]:
    """ECE = sum_m |B_m|/n |acc(B_m) - conf(B_m)| (Guo et al. 2017, equation 3), and its bins that are not empty.

    The confidence is that of the predicted winner, sigmoid(|margin|); bins are equally wide over [0, 1], so those
    below 0.5 stay empty, and this equals the error of sigmoid(margin) over every pair taken both ways around.
    """
    margins = np.asarray(margins, dtype=np.float64)
    if not len(margins):
        return None, []
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    correct = (margins > 0) + 0.5 * (margins == 0)
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    error, rows = 0.0, []
    for index in np.unique(number):
        inside = number == index
        row = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        error += inside.mean() * abs(row["accuracy"] - row["confidence"])
        rows.append({**row, "n": int(inside.sum())})
    return float(error), rows


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation, ties given their mean rank; None when either side is constant."""
    from scipy.stats import spearmanr

    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def cluster_bootstrap(
    parts: Sequence[Floats],
    clusters: NDArray[np.int64],
    *,
    seed: int = 0,
    bootstrap: int = 2000,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """The mean of the means of several parts (N,), with a percentile interval from resampling whole clusters.

    A part has NaN where a row is not in it; without any row it has no mean, and nothing has. With fewer than two
    clusters `low` and `high` are None: nothing is known of other prompts.
    """
    groups = int(clusters.max(initial=-1)) + 1
    result = {"mean": _mean_of_means(parts), "low": None, "high": None, "n": len(clusters), "groups": groups}
    if groups < 2 or result["mean"] is None:
        return result
    drawn = []
    for part in parts:
        rows = ~np.isnan(part)
        totals = np.bincount(clusters[rows], part[rows], minlength=groups)
        sizes = np.bincount(clusters[rows], minlength=groups)
        drawn.append(resampled_ratios(totals, sizes, seed=seed, resamples=bootstrap))
    values = np.mean(drawn, axis=0)
    values = values[~np.isnan(values)]
    if len(values):
        result["low"], result["high"] = percentile_interval(values, confidence)
    return result


def _mean_of_means(parts: Sequence[Floats]) -> float | None:
    inside = [part[~np.isnan(part)] for part in parts]
    return float(np.mean([part.mean() for part in inside])) if all(len(part) for part in inside) else None


def log_loss(margins: ArrayLike) -> float:
    """The mean of -log sigmoid(margin): the Bradley-Terry loss."""
    margins = np.asarray(margins, dtype=np.float64)
    return float(np.logaddexp(0, -margins).mean()) if len(margins) else math.nan


def _cluster_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.int64)
