"""Whether feedback changed with time: agreement, the pull of the side shown first, calibration items passed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.calibration import Answers
from rlhf_loop.feedback.quality.coefficients import verdict_counts
from rlhf_loop.feedback.quality.measures import shown_first_wins
from rlhf_loop.feedback.quality.significance import Z, change, share
from rlhf_loop.feedback.quality.votes import Votes

WINDOWS = 8
LEAST = 20  # values in a window, on average; with fewer values there are fewer windows


def drift(votes: Votes, calibration: Answers) -> dict[str, Any]:
    """For `agreement`, `first_shown_wins` and `calibration`: windows of time with as many values each, and a test.

    A window is `{start, end, share, low, high, n}`, times in seconds since the epoch; for agreement its values are
    pairs, each the share of its annotators' comparisons that agree, at the time of its last verdict. `change` is what
    `significance.change` finds in the whole series, `at` being a time; None with too few values. A series that has
    none is left out.
    """
    first = shown_first_wins(votes)
    series = {
        "agreement": _agreement(votes),
        "first_shown_wins": (votes.time[first.told], first.so[first.told].astype(np.float64)),
        "calibration": (votes.time[calibration.row], calibration.passed.astype(np.float64)),
    }
    return {name: _of_series(time, values) for name, (time, values) in series.items() if len(values)}


def _of_series(time: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, Any]:
    order = np.argsort(time, kind="stable")
    time, values = time[order], values[order]
    count = int(np.clip(len(values) // LEAST, 1, WINDOWS))
    windows = []
    for rows in np.array_split(np.arange(len(values)), count):
        mean, n = float(values[rows].mean()), len(rows)
        if np.isin(values[rows], (0.0, 1.0)).all():
            found = share(round(mean * n), n)
            low, high = found.low, found.high
        else:
            half = Z * float(values[rows].std(ddof=1)) / np.sqrt(n) if n > 1 else 1.0
            low, high = max(0.0, mean - half), min(1.0, mean + half)
        window = {"start": float(time[rows[0]]), "end": float(time[rows[-1]])}
        windows.append({**window, "share": mean, "low": low, "high": high, "n": n})
    found_change = change(values) if time[-1] > time[0] else None
    return {
        "windows": windows,
        "change": None
        if found_change is None
        else {
            "p": found_change.p,
            "at": float(time[found_change.at]),
            "before": found_change.before,
            "after": found_change.after,
            "n": found_change.n,
        },
    }


def _agreement(votes: Votes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each pair with several annotators: when its last verdict came, and the share of comparisons that agree."""
    counts = verdict_counts(votes)
    judges = counts.sum(1)
    latest = np.full(votes.units, -np.inf)
    np.maximum.at(latest, votes.unit, votes.time)
    several = judges > 1
    counts, judges = counts[several], judges[several]
    return latest[several], (counts * (counts - 1)).sum(1) / np.maximum(judges * (judges - 1), 1)
