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
class Change:
    """Whether the mean of a series changed: `at` is the row after which it most likely did."""

    p: float
    at: int
    before: float
    after: float
    n: int


def sign_test(k: int, n: int) -> float | None:
    """Two-sided exact binomial p-value of k successes in n, for a chance of one half; None for n = 0."""
    if not n:
        return None
    from scipy.special import betainc  # P(X >= most) for X ~ Binomial(n, 1/2)

    most = max(k, n - k)
    return min(1.0, 2 * float(betainc(most, n - most + 1, 0.5)))


def wilson(k: NDArray[Any], n: NDArray[Any]) -> tuple[Floats, Floats]:
    """95% intervals of many shares k / n at once (Wilson 1927); 0 to 1 where n is 0."""
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    safe = np.maximum(n, 1)
    share = k / safe
    centre = (share + Z**2 / (2 * safe)) / (1 + Z**2 / safe)
    half = Z * np.sqrt(share * (1 - share) / safe + Z**2 / (4 * safe**2)) / (1 + Z**2 / safe)
    return np.where(n > 0, np.clip(centre - half, 0, 1), 0.0), np.where(n > 0, np.clip(centre + half, 0, 1), 1.0)


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
    return Change(p=kolmogorov_tail(statistic), at=at, before=float(before), after=float(after), n=n)


def kolmogorov_tail(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution: 2 sum over j >= 1 of (-1)^(j-1) exp(-2 j^2 x^2)."""
    if x < 0.2:
        return 1.0  # to twelve digits
    series = math.fsum((1 if j % 2 else -1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 60))
    return min(1.0, max(0.0, 2 * series))


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
