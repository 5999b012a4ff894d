"""Victories in a circle: a beats b beats c beats a."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def in_circles(winner: Ints, loser: Ints) -> NDArray[np.bool_]:
    """(E,) whether each victory, `winner[i]` over `loser[i]` (numbers from 0), is on a circle of victories.

    It is where both are in one strongly connected part of the graph. Answers that nobody beats, or that beat nobody,
    are on none: they are taken away until none is left, which for most feedback leaves little to search.
    """
    left = np.arange(len(winner))
    nodes = int(max(winner.max(initial=-1), loser.max(initial=-1))) + 1
    while len(left):
        wins, losses = np.bincount(winner[left], minlength=nodes), np.bincount(loser[left], minlength=nodes)
        kept = left[(losses[winner[left]] > 0) & (wins[loser[left]] > 0)]
        if len(kept) == len(left):
            break
        left = kept
    found = np.zeros(len(winner), dtype=bool)
    if len(left):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        victories = coo_array((np.ones(len(left)), (winner[left], loser[left])), shape=(nodes, nodes))
        _, part = connected_components(victories.tocsr(), connection="strong")
        found[left] = part[winner[left]] == part[loser[left]]
    return found
