"""What verdicts show, each measured in one way: agreement, the pull of place and length, pace.

All read `Votes` (of a store, of records, or some of them: `Votes.take`), and every share comes with its interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality import coefficients
from rlhf_loop.feedback.quality.significance import Share, share
from rlhf_loop.feedback.quality.votes import FIRST, Votes

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement of annotators over the pairs that more than one of them judged."""

    pairs: int  # judged by two annotators or more
    comparisons: int  # of two annotators about one pair
    agreed: float | None  # share of the comparisons in which both said the same
    alpha: float | None  # Krippendorff's: 1 perfect, 0 as by chance, below 0 worse; None when it is not defined
    alpha_low: float | None  # its 95% interval, from resampling pairs
    alpha_high: float | None


class Cases(NamedTuple):
    """Of N votes, those in which something is so, and those of which it can be told at all."""

    so: Bools  # (N,)
    told: Bools  # (N,)

    def share(self) -> Share:
        """How often it is so."""
        return share(int((self.so & self.told).sum()), int(self.told.sum()))

    def by_annotator(self, votes: Votes) -> tuple[Ints, Ints]:
        """(A,), (A,): in how many votes of each annotator it is so, and of how many it can be told."""
        count = len(votes.annotators)
        so = np.bincount(votes.annotator[self.so & self.told], minlength=count)
        return so, np.bincount(votes.annotator[self.told], minlength=count)


def agreement(votes: Votes) -> Agreement:
    """How far annotators agree; an annotator who judged a pair several times counts with the last verdict.

    By chance either side of a pair wins as often, so the values that alpha compares are: one side, the other side, a
    tie, both bad.
    """
    counts = coefficients.verdict_counts(votes)
    counts = counts[counts.sum(1) > 1]
    judges = counts.sum(1)
    comparisons = int((judges * (judges - 1)).sum()) // 2
    agreed = int((counts * (counts - 1)).sum()) // 2
    alpha = coefficients.bootstrap(coefficients.krippendorff_alpha, counts)
    return Agreement(
        pairs=len(counts),
        comparisons=comparisons,
        agreed=agreed / comparisons if comparisons else None,
        alpha=alpha.value,
        alpha_low=alpha.low,
        alpha_high=alpha.high,
    )


def agreement_with_others(votes: Votes) -> tuple[Ints, Ints]:
    """(A,), (A,): comparisons of each annotator with another one about the same pair in which both said the same, and
    all of them. The last verdict of an annotator on a pair counts."""
    last = votes.last_of_each()
    counts = coefficients.verdict_counts(last)
    same, others = counts[last.unit, last.verdict] - 1, counts.sum(1)[last.unit] - 1
    count = len(votes.annotators)
    agreed, compared = (np.bincount(last.annotator, of, minlength=count) for of in (same, others))
    return agreed.astype(np.int64), compared.astype(np.int64)


def shown_first_wins(votes: Votes) -> Cases:
    """Whether the side shown first won, of decided votes with a known order.

    More often than half of the time is a bias if the order was drawn at random; otherwise the better answers may have
    been shown first.
    """
    return Cases(votes.verdict == votes.shown, votes.decided & (votes.shown >= 0))


def longer_wins(votes: Votes, words: Ints) -> Cases:
    """Whether the side with more words (`words` (C,) of each completion) won, of decided votes where one has more.

    Longer may well be better.
    """
    difference = (words[votes.first] - words[votes.second])[votes.unit]
    return Cases((difference > 0) == (votes.verdict == FIRST), votes.decided & (difference != 0))


def median_seconds(votes: Votes) -> list[float | None]:
    """The median seconds of each annotator for a verdict; None where they are not known."""
    rows = np.flatnonzero(np.isfinite(votes.lead_time))
    order = rows[np.lexsort((votes.lead_time[rows], votes.annotator[rows]))]
    sizes = np.bincount(votes.annotator[rows], minlength=len(votes.annotators))
    starts = np.cumsum(sizes) - sizes
    medians: list[float | None] = []
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        middle = votes.lead_time[order[start + (size - 1) // 2 : start + size // 2 + 1]]
        medians.append(float(middle.mean()) if size else None)
    return medians
