"""What need not be measured again: numbers of earlier evaluations, by what they were measured on.

The base's answers, and with them its perplexities, are the same in every round of a run; so are the judge's scores of
answers that an earlier round had judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_loop.files import fingerprint


class Measured:
    """Looks up what `known` holds, and measures the rest; what it was asked for is in `numbers`, for later rounds.

    A number is known by a hash of all that it follows from, so one of other texts or models is never taken for it.
    """

    def __init__(self, known: Mapping[str, Any] | None = None):
        self.known = known or {}
        self.numbers: dict[str, Any] = {}

    def __call__(self, made_of: Any, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, plain values for JSON; `made_of`: all that it follows from, plain values too."""
        key = fingerprint(made_of)
        if key not in self.numbers:
            self.numbers[key] = self.known[key] if key in self.known else measure()
        return self.numbers[key]
