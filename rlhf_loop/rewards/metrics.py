"""How good a reward model is on pairs it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    def accuracy(rows: NDArray[np.int64]) -> float | None:
        return float(won[rows].mean()) if len(rows) else None

    def balanced(rows: NDArray[np.int64]) -> float | None:
        return length_balanced_accuracy(won[rows], difference[rows])

    words = np.concatenate([np.asarray(chosen_words), np.asarray(rejected_words)])
    ece, bins = expected_calibration_error(margins)
    return {
        "accuracy": cluster_bootstrap(accuracy, clusters, seed=seed, bootstrap=bootstrap, confidence=confidence),
        "length_balanced_accuracy": cluster_bootstrap(
            balanced, clusters, seed=seed, bootstrap=bootstrap, confidence=confidence
        ),
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
    won, difference = np.asarray(won, dtype=np.float64), np.asarray(difference, dtype=np.float64)
    longer, shorter = won[difference > 0], won[difference < 0]
    if not len(longer) or not len(shorter):
        return None
    return float((longer.mean() + shorter.mean()) / 2)


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
    first, second = _ranks(np.asarray(x, dtype=np.float64)), _ranks(np.asarray(y, dtype=np.float64))
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def cluster_bootstrap(
    statistic: Any, clusters: NDArray[np.int64], *, seed: int = 0, bootstrap: int = 2000, confidence: float = 0.95
) -> dict[str, Any]:
    """`statistic(row numbers)` with a percentile interval from resampling whole clusters.

    Pairs of one prompt share texts and are not independent, so clusters are drawn, not pairs (Field and Welsh 2007).
    With fewer than two clusters `low` and `high` are None: nothing is known of other prompts.
    """
    rows = [np.flatnonzero(clusters == number) for number in range(int(clusters.max(initial=-1)) + 1)]
    result = {"mean": statistic(np.arange(len(clusters))), "low": None, "high": None, "n": len(clusters)}
    result["groups"] = len(rows)
    if len(rows) < 2 or result["mean"] is None:
        return result
    draw = np.random.default_rng(seed)
    values = [
        statistic(np.concatenate([rows[number] for number in draw.integers(len(rows), size=len(rows))]))
        for _ in range(bootstrap)
    ]
    values = [value for value in values if value is not None]
    if values:
        tail = (1 - confidence) / 2
        result["low"], result["high"] = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    return result


def log_loss(margins: ArrayLike) -> float:
    """The mean of -log sigmoid(margin): the Bradley-Terry loss."""
    margins = np.asarray(margins, dtype=np.float64)
    return float(np.logaddexp(0, -margins).mean()) if len(margins) else math.nan


def _cluster_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.int64)


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Floats = last - (counts + 1) / 2
    return mean_rank[inverse]
