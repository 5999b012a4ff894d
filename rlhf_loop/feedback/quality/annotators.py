"""One row for each annotator: how much, how reliable, how biased, and what to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.calibration import Answers
from rlhf_loop.feedback.quality.coefficients import cohen_kappa, comparisons, symmetric
from rlhf_loop.feedback.quality.contradictions import repeated
from rlhf_loop.feedback.quality.dawid_skene import DawidSkene
from rlhf_loop.feedback.quality.measures import (
    agreement_with_others,
    longer_wins,
    median_seconds,
    shown_first_wins,
)
from rlhf_loop.feedback.quality.significance import exact_interval, sign_test
from rlhf_loop.feedback.quality.votes import BOTH_BAD, TIE, Votes

Ints = NDArray[np.int64]
CONFIDENCE = 0.05  # of a flag, over all annotators together (Bonferroni)
SLIGHT = 0.2  # kappa below it is "slight" agreement (Landis and Koch 1977)


def annotator_rows(votes: Votes, people: DawidSkene, words: Ints, calibration: Answers) -> list[dict[str, Any]]:
    """The annotators, those with most verdicts first.

    Shares are `{share, low, high, n}` with its exact 95% interval; `share` is None for n = 0. `accuracy` is the
    probability that their verdict is the true one (Dawid and Skene), its interval that of the share of their verdicts
    expected to be true, taking the consensus as known; n counts verdicts on pairs that others judged too. `weight` is
    what their votes count in a consensus. `kappa` is Cohen's, against everybody else. `flags` says in words what is
    unlikely to be chance.
    """
    count = len(votes.annotators)

    def per(rows: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
        return np.bincount(votes.annotator[rows], None if weights is None else weights[rows], minlength=count)

    everything = np.ones(len(votes), dtype=bool)
    total = per(everything)
    undecided = per(np.isin(votes.verdict, (TIE, BOTH_BAD)))
    first, first_n = shown_first_wins(votes).by_annotator(votes)
    longer, longer_n = longer_wins(votes, words).by_annotator(votes)
    agreed, agreed_n = agreement_with_others(votes)
    kappa = _kappa(votes.last_of_each(), count)
    judged_by = np.bincount(votes.last_of_each().unit, minlength=votes.units)
    shared = judged_by[votes.unit] > 1
    true, true_n = per(shared, people.posterior[votes.unit, votes.verdict]), per(shared)
    own, again = repeated(votes)
    contradicted, repeats = np.bincount(own[:, 1], minlength=count), np.bincount(again[:, 1], minlength=count)
    passed, items = calibration.by_annotator(votes)
    seconds = median_seconds(votes)
    columns = {
        "undecided": (undecided, total),
        "agreement": (agreed, agreed_n),
        "accuracy": (true, true_n),
        "first_shown_wins": (first, first_n),
        "longer_wins": (longer, longer_n),
        "contradicts_self": (contradicted, repeats),
        "calibration_passed": (passed, items),
    }
    bounds = {name: exact_interval(k, n) for name, (k, n) in columns.items()}
    order = np.argsort(-total, kind="stable")
    chance = CONFIDENCE / max(1, count)
    crowd = agreed.sum() / max(1, agreed_n.sum())
    rows = []
    for a in order[total[order] > 0].tolist():
        shares: dict[str, dict[str, Any]] = {
            name: {
                "share": float(k[a] / n[a]) if n[a] else None,
                "low": float(bounds[name][0][a]),
                "high": float(bounds[name][1][a]),
                "n": int(n[a]),
            }
            for name, (k, n) in columns.items()
        }
        if true_n[a]:
            accuracy, fitted = shares["accuracy"], float(people.accuracy[a])
            low, high = min(accuracy["low"], fitted), max(accuracy["high"], fitted)
            accuracy |= {"share": fitted, "low": low, "high": high}
        flags = []
        towards = sign_test(int(first[a]), int(first_n[a]))
        if towards is not None and towards < chance:
            flags.append(f"prefers the {'first' if 2 * first[a] > first_n[a] else 'second'} answer shown")
        if agreed_n[a] >= 30 and shares["agreement"]["high"] < crowd and (kappa[a] or 0) < SLIGHT:
            flags.append("agrees with others little more than by chance")
        if shares["contradicts_self"]["low"] > 0.25:
            flags.append("contradicts what they said before")
        if items[a] and shares["calibration_passed"]["high"] < 0.7:
            flags.append("fails calibration items")
        rows.append(
            {
                "annotator": votes.annotators[a],
                "verdicts": int(total[a]),
                **shares,
                "kappa": kappa[a],
                "weight": float(people.weight[a]) if true_n[a] else None,
                "median_seconds": seconds[a],
                "flags": flags,
            }
        )
    return rows


def annotator_pairs(votes: Votes, most: int) -> list[tuple[int, int, NDArray[np.int64]]]:
    """The `most` pairs of annotators who judged most pairs of answers in common: two numbers and their table (4, 4)."""
    one, other = comparisons(votes.last_of_each())
    if not len(one):
        return []
    last = votes.last_of_each()
    swap = last.annotator[one] > last.annotator[other]
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    key = last.annotator[one] * len(votes.annotators) + last.annotator[other]
    names, number, counts = np.unique(key, return_inverse=True, return_counts=True)
    best = np.argsort(-counts, kind="stable")[:most]
    said = last.verdict[one] * 4 + last.verdict[other]
    found = []
    for place in best.tolist():
        rows = np.flatnonzero(number == place)
        table = np.bincount(said[rows], minlength=16).reshape(4, 4)
        first, second = divmod(int(names[place]), len(votes.annotators))
        found.append((first, second, table))
    return found


def _kappa(last: Votes, count: int) -> list[float | None]:
    """Cohen's kappa of each annotator against all others together."""
    one, other = comparisons(last)
    rows, columns = np.concatenate([one, other]), np.concatenate([other, one])
    key = last.annotator[rows] * 16 + last.verdict[rows] * 4 + last.verdict[columns]
    tables = np.bincount(key, minlength=16 * count).reshape(count, 4, 4)
    return [float(k) if np.isfinite(k) else None for k in np.atleast_1d(cohen_kappa(symmetric(tables)))]
