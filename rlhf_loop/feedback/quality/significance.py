"""Tests and intervals that the measures of quality share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Z = 1.959963984540054  # of a 95% interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of `n` cases with its exact interval; `share` is None when there are no cases."""

    share: float | None
    low: float
    high: float
    n: int

    @property
    def p(self) -> float | None:
        """How probable a share so far from a half is by chance (`sign_test`)."""
        return None if self.share is None else sign_test(round(self.share * self.n), self.n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Whether the mean of a series changed: `at` is the row after which it most likely did."""

    p: float
    at: int
    before: float
    after: float
    n: int


def share(k: int, n: int) -> Share:
    """k of n with its exact 95% interval."""
    low, high = exact_interval(np.array([k]), np.array([n]))
    return Share(share=k / n if n else None, low=float(low[0]), high=float(high[0]), n=n)


def exact_interval(k: NDArray[Any], n: NDArray[Any]) -> tuple[Floats, Floats]:
    """The exact binomial 95% intervals of many shares k / n (Clopper and Pearson 1934); 0 to 1 where n is 0.

    `k` need not be whole numbers: expected counts are taken, too.
    """
    from scipy.special import betaincinv  # quantiles of the beta distribution; a tenth of a second to import

    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    k = np.clip(k, 0, n)  # sums of floating point numbers may be beyond
    some, some_not = np.maximum(k, 1e-300), np.maximum(n - k, 1e-300)  # where it is 0, the bound is known
    low = np.where(k > 0, betaincinv(some, n - k + 1, 0.025), 0.0)
    high = np.where(k < n, betaincinv(k + 1, some_not, 0.975), 1.0)
    return low, high


def sign_test(k: int, n: int) -> float | None:
    """Two-sided exact binomial p-value of k successes in n, for a chance of one half; None for n = 0."""
    if not n:
        return None
    from scipy.special import betainc  # P(X >= most) for X ~ Binomial(n, 1/2)

    most = max(k, n - k)
    return min(1.0, 2 * float(betainc(most, n - most + 1, 0.5)))


def normal_p(z: float) -> float:
    """Two-sided p-value of a standard normal statistic."""
    return math.erfc(abs(z) / math.sqrt(2))


def change(values: NDArray[Any]) -> Change | None:
    """Tests whether the mean of independent values (N,), in order of time, changed somewhere.

    The statistic is max_k |S_k - k/N S_N| / (s sqrt(N)), S_k the sum of the first k values and s their standard
    deviation: the largest excursion of a Brownian bridge when nothing changed (Page 1955; Csorgo and Horvath 1997,
    section 1.1), whose distribution is Kolmogorov's. It holds for large N and is cautious for small. None with fewer
    than 20 values or when they are all the same.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 20 or values.std() == 0:
        return None
    excursion = np.cumsum(values - values.mean())
    at = int(np.argmax(np.abs(excursion[:-1])))
    statistic = abs(excursion[at]) / (values.std() * math.sqrt(n))
    before, after = values[: at + 1].mean(), values[at + 1 :].mean()
    from scipy.special import kolmogorov

    return Change(p=float(kolmogorov(statistic)), at=at, before=float(before), after=float(after), n=n)


def logistic_regression(x: NDArray[Any], y: NDArray[Any], clusters: NDArray[np.int64]) -> tuple[Floats, Floats] | None:
    """Coefficients (D,) of P(y = 1) = sigmoid(x.b), and standard errors that allow for dependence within clusters.

    `x` (N, D), `y` (N,) of 0 and 1, `clusters` (N,) numbers. Newton's method; the errors are the sandwich of Liang and
    Zeger (1986) without a small-sample factor. None when there is no finite solution: the data are separated, or the
    columns depend on each other.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = _sigmoid(x @ beta)
        information = (x * (p * (1 - p))[:, None]).T @ x
        try:
            step = np.linalg.solve(information, x.T @ (y - p))
        except np.linalg.LinAlgError:
            return None
        beta = beta + step
        if np.abs(beta).max(initial=0) > 30 or not np.isfinite(beta).all():
            return None
        if np.abs(step).max(initial=0) < 1e-10:
            break
    else:
        return None
    p = _sigmoid(x @ beta)
    residual = x * (y - p)[:, None]
    _, number = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(number, weights=column) for column in residual.T], axis=1)  # (clusters, D)
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    return beta, np.sqrt(np.diag(bread @ (sums.T @ sums) @ bread))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))), dtype=np.float64)
