"""How far people agree, and whether the side on which an answer was shown sways them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_loop.feedback.quality import coefficients
from rlhf_loop.feedback.quality.votes import Votes, votes_of
from rlhf_loop.feedback.store.table_rows import AnyFeedback
from rlhf_loop.records import Preference


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of `n` cases with its exact interval; `share` is None when there are no cases."""

    share: float | None
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement of annotators over the pairs that more than one of them judged."""

    pairs: int  # judged by two annotators or more
    comparisons: int  # of two annotators about one pair
    agreed: float | None  # share of the comparisons in which both said the same
    alpha: float | None  # Krippendorff's: 1 perfect, 0 as by chance, below 0 worse; None when it is not defined
    alpha_low: float | None  # its 95% interval, from resampling pairs
    alpha_high: float | None


def agreement(preferences: Iterable[Preference]) -> Agreement:
    """How far annotators agree; an annotator who judged a pair several times counts with the last verdict.

    By chance either side of a pair wins as often, so the values that alpha compares are: one side, the other side, a
    tie, both bad.
    """
    return agreement_of(votes_of(preferences))


def agreement_of(votes: Votes) -> Agreement:
    """`agreement` of preferences that are columns already."""
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


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values; each unit holds the values that it was given.

    See `quality.coefficients.krippendorff_alpha`. None with fewer than two values to compare, or only one in use.
    """
    places: dict[Hashable, int] = {}
    kept = [[places.setdefault(value, len(places)) for value in unit] for unit in units if len(unit) > 1]
    if not kept:
        return None
    counts = np.stack([np.bincount(unit, minlength=len(places)) for unit in kept])
    alpha = float(coefficients.krippendorff_alpha(counts))
    return None if math.isnan(alpha) else alpha


def position_bias(preferences: Iterable[Preference]) -> Share:
    """How often the answer that was shown first wins, of the decided preferences that say what was shown first.

    0.5 is no bias, when the order was drawn at random.
    """
    wins = n = 0
    for preference in preferences:
        if preference.shown_order is not None and preference.winner in ("a", "b"):
            n += 1
            wins += preference.winner == preference.shown_order[0]
    return share(wins, n)


def per_annotator(feedback: Iterable[AnyFeedback]) -> dict[str, dict[str, int]]:
    """Annotator -> kind of feedback -> how many."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in feedback:
        counts[record.annotator.id][record.kind] += 1
    return {annotator: dict(kinds) for annotator, kinds in sorted(counts.items())}


def verdict(preference: Preference) -> str:
    """The verdict however the pair was shown: the winner's id, `tie` or `both_bad`."""
    winner = preference.winner
    return preference.a_id if winner == "a" else preference.b_id if winner == "b" else winner


def share(k: int, n: int, confidence: float = 0.95) -> Share:
    """k of n with the exact binomial interval of Clopper and Pearson (1934)."""
    if n == 0:
        return Share(share=None, low=0.0, high=1.0, n=0)
    from scipy.special import betaincinv  # quantiles of the beta distribution; a tenth of a second to import

    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Share(share=k / n, low=low, high=high, n=n)
