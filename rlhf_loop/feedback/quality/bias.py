"""Position and length at once: whether verdicts go with what should not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.significance import Z, logistic_regression, normal_p
from rlhf_loop.feedback.quality.votes import FIRST, Votes

Ints = NDArray[np.int64]


def regression(votes: Votes, words: Ints) -> dict[str, Any] | None:
    """Position and length at once: a logistic regression of decided votes, with errors that allow for prompts.

    log odds(first side wins) = shown_first * s + longer * log2(words of the first side / words of the second), with
    s = 1 if the first side was shown first, -1 if the second, 0 if that is not known. Each effect is given as an odds
    ratio with its 95% interval and p-value: being shown first, and being twice as long. None where nothing can be
    fitted: too few votes, or one effect decides every vote.
    """
    decided = votes.take(votes.decided)
    shown = np.select([decided.shown == 0, decided.shown == 1], [1.0, -1.0], 0.0)
    ratio = np.log2(np.maximum(words, 1).astype(np.float64))
    length = (ratio[decided.first] - ratio[decided.second])[decided.unit]
    columns = {"shown_first": shown, "twice_as_long": length}
    used = [name for name, column in columns.items() if np.any(column != 0)]
    prompts = decided.prompt[decided.unit]
    if not used or len(decided) < 20 or len(np.unique(prompts)) < 5:
        return None
    x = np.stack([columns[name] for name in used], axis=1)
    fitted = logistic_regression(x, (decided.verdict == FIRST).astype(np.float64), prompts)
    if fitted is None:
        return None
    effects = {
        name: {
            "odds_ratio": float(np.exp(b)),
            "low": float(np.exp(b - Z * se)),
            "high": float(np.exp(b + Z * se)),
            "p": normal_p(b / se) if se > 0 else None,
        }
        for name, b, se in zip(used, *fitted, strict=True)
    }
    return {"n": len(decided), "prompts": len(np.unique(prompts)), "effects": effects}
