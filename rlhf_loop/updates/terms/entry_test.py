"""Whether a policy can read critiques: told what was said of an answer it is to find the answer more or less likely,
told what was said of another one it is not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.resampling import percentile_interval, resampled_ratios

T = TypeVar("T")

FEWEST = 8
"""Prompts without which an interval says nothing."""

CONFIDENCE, RESAMPLES = 0.95, 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """Mean log-ratios of answers' tokens, nats a token, told to untold."""

    right: float  # told what was said of them
    unrelated: float  # told what was said of another prompt's answer
    low: float  # of the difference right - unrelated: its interval
    high: float
    answers: int
    prompts: int

    def is_clear(self, unrelated_share: float) -> bool:
        """Whether the interval of the difference leaves 0 out, and the unrelated signal is near 0: at most
        `unrelated_share` of the right one."""
        return not self.low <= 0 <= self.high and abs(self.unrelated) <= unrelated_share * abs(self.right)

    def said(self, unrelated_share: float) -> str:
        """The numbers in words, with their limits."""
        return (
            f"told what was said of them, {self.answers} answers to {self.prompts} prompts change by {self.right:+.4f} "
            f"nats a token; told what was said of others, by {self.unrelated:+.4f}, of which at most "
            f"{unrelated_share * abs(self.right):.4f} is allowed; the difference is between {self.low:+.4f} and "
            f"{self.high:+.4f} ({CONFIDENCE:.0%}), and must leave 0 out"
        )


def signal(right: Any, unrelated: Any, groups: Sequence[str], seed: int) -> Signal:
    """Of answers' log-ratios (N,), each answer counting the same; whole groups (prompts that share texts) are drawn."""
    of_right, of_unrelated = np.asarray(right, dtype=np.float64), np.asarray(unrelated, dtype=np.float64)
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    totals: NDArray[Any] = np.bincount(number, weights=of_right - of_unrelated, minlength=len(names))
    sizes = np.bincount(number, minlength=len(names))
    low, high = percentile_interval(resampled_ratios(totals, sizes, seed=seed, resamples=RESAMPLES), CONFIDENCE)
    return Signal(
        right=float(of_right.mean()),
        unrelated=float(of_unrelated.mean()),
        low=low,
        high=high,
        answers=len(of_right),
        prompts=len(names),
    )


def unrelated(items: Sequence[T], row: Callable[[T], CritiquedCompletion], seed: int) -> list[tuple[T, T]]:
    """Each item, in a shuffled order, with another whose critique is of another prompt and says something else; items
    for which there is none are left out."""
    generator = random.Random(seed)
    mixed = list(items)
    generator.shuffle(mixed)
    pairs = []
    for place, one in enumerate(mixed):
        others = (mixed[(place + step) % len(mixed)] for step in range(1, len(mixed)))
        mine = row(one)
        found = next((o for o in others if row(o).group != mine.group and row(o).critique != mine.critique), None)
        if found is not None:
            pairs.append((one, found))
    return pairs
