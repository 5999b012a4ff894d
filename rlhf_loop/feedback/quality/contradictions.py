"""Verdicts that cannot all be right: of one annotator, between annotators, in circles (a beats b beats c beats a)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.circles import in_circles
from rlhf_loop.feedback.quality.significance import share
from rlhf_loop.feedback.quality.votes import FIRST, SECOND, Votes

Ints = NDArray[np.int64]
EXAMPLES = 3


def contradictions(votes: Votes) -> dict[str, Any]:
    """Shares with exact intervals: `own`, of the pairs that one annotator judged again, those judged both ways;
    `between`, of the pairs that several annotators decided, those decided both ways; `circles`, of the pairs with a
    majority, those on a circle. With examples of each."""
    own, again = repeated(votes)
    last = votes.last_of_each()
    decided = np.stack([np.bincount(last.unit[last.verdict == v], minlength=votes.units) for v in (FIRST, SECOND)], 1)
    several, both = decided.sum(1) > 1, (decided > 0).all(1)
    winner, loser, units = majority(votes, decided)
    on_circle = in_circles(winner, loser)
    prompts = np.unique(votes.prompt[units[on_circle]])
    return {
        "own": {
            **asdict(share(len(own), len(again))),
            "examples": [f"{votes.annotators[a]} on {_pair(votes, u)}" for u, a in own[:EXAMPLES]],
        },
        "between": {
            **asdict(share(int(both.sum()), int(several.sum()))),
            "examples": [
                f"{_pair(votes, u)}: {decided[u, 0]} to {decided[u, 1]}" for u in np.flatnonzero(both)[:EXAMPLES]
            ],
        },
        "circles": {
            **asdict(share(int(on_circle.sum()), len(units))),
            "prompts": len(prompts),
            "examples": [f"prompt {votes.prompts[p]}" for p in prompts[:EXAMPLES]],
        },
    }


def repeated(votes: Votes) -> tuple[Ints, Ints]:
    """(R, 2), (S, 2) unit and annotator: those that were decided both ways, and all that were decided again."""
    rows = votes.take(votes.decided)
    key, number, counts = np.unique(
        rows.unit * max(1, len(votes.annotators)) + rows.annotator, return_inverse=True, return_counts=True
    )
    seconds = np.bincount(number, rows.verdict == SECOND, minlength=len(key))
    again, both = counts > 1, (seconds > 0) & (seconds < counts)
    pairs = np.stack(np.divmod(key, max(1, len(votes.annotators))), axis=1)
    return pairs[both], pairs[again]


def majority(votes: Votes, decided: Ints) -> tuple[Ints, Ints, Ints]:
    """Winner, loser and number of each pair in which one side has more of the `decided` (U, 2) votes."""
    units = np.flatnonzero(decided[:, 0] != decided[:, 1])
    first_won = decided[units, 0] > decided[units, 1]
    first, second = votes.first[units], votes.second[units]
    return np.where(first_won, first, second), np.where(first_won, second, first), units


def _pair(votes: Votes, unit: int) -> str:
    return f"{votes.completions[votes.first[unit]]} | {votes.completions[votes.second[unit]]}"
