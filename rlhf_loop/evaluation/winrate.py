"""How often one policy's answers beat another's, and how sure one may be of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_loop.resampling import Floats, percentile_interval, resampled_ratios

PSEUDO_GROUPS = 2
"""Wins and losses, each, that are added before resampling (Agresti and Coull 1998: "add two of each")."""

MIN_LENGTH_MATCHED = 8
"""Fewer comparisons than this say nothing about answers of like length."""


def win_rate(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    groups: Sequence[str],
    tie_below: float = 1e-9,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The share of comparisons that a wins, ties counting half: `{mean, low, high, n, wins, ties, losses}`.

    `scores_a[i]` and `scores_b[i]` are the judge's scores of two answers to one prompt; scores that differ by less
    than `tie_below` (or not at all) are a tie. `groups[i]` names the prompt: answers to one prompt are not
    independent, so whole groups are resampled.

    `low` and `high` are the percentile interval of `bootstrap` resamples (Efron and Tibshirani 1993, chapter 13) of
    the groups together with two made-up groups that a wins and two that it loses. Without those a bootstrap of 64
    wins out of 64 would claim [1, 1], and 64 ties [0.5, 0.5]; with them the interval is close to Wilson's where there
    are no ties and one comparison a group, and it stays honest at the ends. They touch the interval only; `mean` is
    the plain share.

    Raises `ValueError` when the lengths differ, nothing is compared, or a score is not a number.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if not len(a) == len(b) == len(groups):
        raise ValueError(f"{len(a)} and {len(b)} scores for {len(groups)} comparisons; give one of each a comparison")
    if not len(a):
        raise ValueError("no comparisons: a win-rate needs at least one prompt that both policies answered")
    wrong = np.flatnonzero(np.isnan(a) | np.isnan(b))
    if len(wrong):
        raise ValueError(f"the judge gave no number for comparison {wrong[0]} (prompt {groups[wrong[0]]})")
    outcome = outcomes(a, b, tie_below)
    low, high = _interval(outcome, groups, confidence, bootstrap, seed)
    mean = float(outcome.mean())
    wins, ties = int((outcome == 1).sum()), int((outcome == 0.5).sum())
    return {
        "mean": mean,
        "low": min(low, mean),
        "high": max(high, mean),
        "n": len(outcome),
        "wins": wins,
        "ties": ties,
        "losses": len(outcome) - wins - ties,
    }


def outcomes(scores_a: Sequence[float] | Floats, scores_b: Sequence[float] | Floats, tie_below: float = 1e-9) -> Floats:
    """(n,) what became of each comparison: 1 where a wins, 0 where b does, 0.5 for a tie, as `win_rate` counts them."""
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # infinity against infinity is a tie
        tie = (a == b) | (np.abs(a - b) < tie_below)
    return np.where(tie, 0.5, a > b)


def length_matched(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    words_a: Sequence[int],
    words_b: Sequence[int],
    groups: Sequence[str],
    length_match: float = 0.2,
    **settings: Any,
) -> dict[str, Any] | None:
    """`win_rate` over the comparisons whose answers are about as long as each other; None for fewer than 8 of them.

    About as long: the word counts differ by at most `length_match` of the longer one. A win that comes from length
    alone is not among them. `settings` are those of `win_rate`.
    """
    longer = np.maximum(words_a, words_b)
    close = np.abs(np.asarray(words_a) - np.asarray(words_b)) <= length_match * longer
    matched: list[int] = np.flatnonzero(close).tolist()
    if len(matched) < MIN_LENGTH_MATCHED:
        return None
    return win_rate(
        [scores_a[i] for i in matched], [scores_b[i] for i in matched], [groups[i] for i in matched], **settings
    )


def _interval(
    outcome: Floats, groups: Sequence[str], confidence: float, bootstrap: int, seed: int
) -> tuple[float, float]:
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)  # (G,)
    totals = np.bincount(member, weights=outcome)  # (G,)
    made_up = sizes.mean()
    totals = np.concatenate([totals, np.repeat([made_up, 0.0], PSEUDO_GROUPS)])
    sizes = np.concatenate([sizes, np.repeat(made_up, 2 * PSEUDO_GROUPS)])
    return percentile_interval(resampled_ratios(totals, sizes, seed=seed, resamples=bootstrap), confidence)
