"""How sure one may be of a mean over prompts and seeds, and of several differences at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_loop.resampling import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean, its interval, and how surprising it would be were the truth `null`."""

    mean: float
    low: float | None  # None: of one prompt nothing can be said of others
    high: float | None
    p: float | None
    seeds: int
    prompts: int


def crossed_mean(values: Floats, confidence: float = 0.95, null: float = 0.0) -> Estimate:
    """The mean of `values` (S, P), one a seed and prompt, for seeds and prompts that both stand for others like them.

    Values of one seed share its luck, those of one prompt its difficulty, so neither are S x P independent values. In
    the crossed random effects y_sp = m + a_s + b_p + e_sp (Searle, Casella and McCulloch 1992, section 4.5; one value
    a cell) with mean squares of seeds, prompts and the rest,

        Var(mean) = (MS_seed + MS_prompt - MS_rest) / (S P),

    with the degrees of freedom of Satterthwaite (1946), and Student's t. Never less than what seeds alone or prompts
    alone would give, which a negative estimate of a component would. With one seed it is the t-test over prompts, and
    says nothing of other seeds. A bootstrap of so few seeds is too sure of itself: the middle of means that are drawn
    from three lies within those three, where the truth is in three cases of four (`benchmarks/compare_coverage.py`).
    """
    from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

    seeds, prompts = values.shape
    mean = float(values.mean())
    variance, freedom = _variance(values)
    if variance is None:
        return Estimate(mean=mean, low=None, high=None, p=None, seeds=seeds, prompts=prompts)
    error = float(np.sqrt(variance))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    away = abs(mean - null)
    # rounding of equal values leaves an error of 1e-17
    p = 1.0 if away < 1e-12 else 0.0 if error < 1e-12 else float(2 * stdtr(freedom, -away / error))
    return Estimate(mean=mean, low=mean - reach, high=mean + reach, p=p, seeds=seeds, prompts=prompts)


def _variance(values: Floats) -> tuple[float | None, float]:
    """Of the mean, and its degrees of freedom; None where nothing varies that could."""
    seeds, prompts = values.shape
    if prompts < 2:
        return None, 0.0
    mean = values.mean()
    of_prompts = values.mean(0) - mean  # (P,)
    if seeds == 1:
        return float((of_prompts**2).sum() / (prompts - 1) / prompts), prompts - 1.0
    of_seeds = values.mean(1) - mean  # (S,)
    rest = values - mean - of_seeds[:, None] - of_prompts  # (S, P)
    free = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)], dtype=np.float64)
    squares = np.array([prompts * (of_seeds**2).sum(), seeds * (of_prompts**2).sum(), (rest**2).sum()]) / free
    total = squares[0] + squares[1] - squares[2]
    larger = int(squares[1] > squares[0])
    if total <= squares[larger]:
        return float(squares[larger] / (seeds * prompts)), float(free[larger])
    freedom = total**2 / (squares**2 / free).sum()
    return float(total / (seeds * prompts)), float(max(freedom, 1.0))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, so adjusted that the chance of any false alarm among them stays below the level that
    each is compared with (Holm 1979)."""
    adjusted = [0.0] * len(values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = highest
    return adjusted
