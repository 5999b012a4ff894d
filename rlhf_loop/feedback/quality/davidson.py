"""How strong each answer is, from wins, losses and ties against others.

R. R. Davidson, On extending the Bradley-Terry model to accommodate ties in paired comparison experiments (1970),
equation 2.2: with strengths pi = exp(theta) and a readiness nu = exp(eta) to call a tie,

    P(i beats j) = pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)),    P(tie) = nu sqrt(pi_i pi_j) / (...)

Without ties it is the model of Bradley and Terry. All prompts are fitted at once: each has strengths of its own, nu is
the same for all. The negative log-likelihood is convex in (theta, eta); Newton's method with conjugate gradients finds
its minimum. It is our own as it knows the diagonal of the Hessian: on 20,000 votes scipy's `trust-krylov`, `trust-ncg`
and `Newton-CG` take 5 to 8 times as long and end 30 to 1,000 times farther from the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTY = 0.3
"""Of the squares of theta: before any vote the chance that one answer beats another is then about uniform over 0..1,
as theta_i - theta_j has the variance of a logistic variable, 1 / 0.3 = 3.3 = pi^2 / 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strengths:
    """What was fitted: log-strengths of C answers, and the readiness for ties."""

    theta: Floats  # (C,) comparable within a prompt
    nu: float  # 0 where nobody called a tie

    def outcomes(self, first: Ints, second: Ints) -> Floats:
        """(U, 3) P(first beats second), P(second beats first), P(tie) of pairs of answers, given by their numbers."""
        eta = np.log(self.nu) if self.nu > 0 else -np.inf
        return _outcomes(self.theta[first] - self.theta[second], eta)

    def preference(self, first: Ints, second: Ints) -> Floats:
        """(U,) P(first is better) where no tie is called: sigmoid(theta_first - theta_second)."""
        return np.asarray(1 / (1 + np.exp(self.theta[second] - self.theta[first])), dtype=np.float64)


def davidson(
    first: Ints,
    second: Ints,
    wins: Floats,
    losses: Floats,
    ties: Floats,
    *,
    answers: int,
    penalty: float = PENALTY,
    tolerance: float = 1e-9,
    most_iterations: int = 100,
) -> Strengths:
    """Fits the model to E pairs of answers (numbers from 0): how often the first won, lost, tied; shares are allowed.

    `penalty` (of the sum of squares of theta and eta) keeps an answer that always wins finite. Stops when no element
    of the gradient exceeds `tolerance` for each vote on the answer with most. Raises `UserError` when there is no
    finite solution, which can only be without a penalty.
    """
    total = wins + losses + ties
    with_ties = bool(ties.sum() > 0)
    theta, eta = np.zeros(answers), (0.0 if with_ties else -np.inf)
    scale = max(1.0, float(_at_answers(first, second, total, total, answers).max(initial=0)))

    def loss(theta: Floats, eta: float) -> float:
        half = (theta[first] - theta[second]) / 2
        normaliser = np.logaddexp(np.logaddexp(half, -half), eta)
        tied = float(ties.sum() * eta) + penalty * -(eta**2) if with_ties else 0.0
        return float((total * normaliser - (wins - losses) * half).sum() - tied + penalty * (theta**2).sum())

    value = loss(theta, eta)
    for _ in range(most_iterations):
        p = _outcomes(theta[first] - theta[second], eta)  # (E, 3)
        lean = p[:, 0] - p[:, 1]
        slope = (total * lean - (wins - losses)) / 2
        gradient = _at_answers(first, second, slope, -slope, answers) + 2 * penalty * theta
        gradient_eta = float((total * p[:, 2] - ties).sum()) + 2 * penalty * eta if with_ties else 0.0
        if max(np.abs(gradient).max(initial=0), abs(gradient_eta)) <= tolerance * scale:
            break
        curvature = total * (p[:, 0] + p[:, 1] - lean**2) / 4
        crossed = -total * lean * p[:, 2] / 2
        curvature_eta = float((total * p[:, 2] * (1 - p[:, 2])).sum()) + 2 * penalty

        def times_hessian(
            x: Floats, y: float, curvature: Floats = curvature, crossed: Floats = crossed, last: float = curvature_eta
        ) -> tuple[Floats, float]:
            difference = x[first] - x[second]
            edge = curvature * difference + (crossed * y if with_ties else 0.0)
            below = float(crossed @ difference) + last * y if with_ties else 0.0
            return _at_answers(first, second, edge, -edge, answers) + 2 * penalty * x, below

        diagonal = _at_answers(first, second, curvature, curvature, answers) + 2 * penalty
        step, step_eta = _conjugate_gradients(times_hessian, gradient, gradient_eta, diagonal, curvature_eta)
        decrease = float(gradient @ step) + gradient_eta * step_eta
        length, moved = 1.0, value
        while length > 1e-10:
            moved = loss(theta - length * step, eta - length * step_eta if with_ties else eta)
            if moved <= value - 1e-4 * length * decrease + 1e-12 * abs(value):
                break
            length /= 2
        else:
            break  # as low as floating point gets
        theta = theta - length * step
        eta = eta - length * step_eta if with_ties else eta
        value = moved
        if penalty == 0 and np.abs(theta).max(initial=0) > 10:  # odds of half a billion: on the way to infinity
            raise UserError("an answer that always wins has no finite strength; give a penalty above 0")
    return Strengths(theta=theta, nu=float(np.exp(eta)))


def _outcomes(difference: Floats, eta: float) -> Floats:
    half = difference / 2
    logits = np.stack([half, -half, np.full_like(half, eta)], axis=1)
    odds = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    return np.asarray(odds / odds.sum(1, keepdims=True), dtype=np.float64)


def _at_answers(first: Ints, second: Ints, of_first: Floats, of_second: Floats, answers: int) -> Floats:
    """(C,) sums over the pairs that an answer is in."""
    sums = np.bincount(first, of_first, minlength=answers) + np.bincount(second, of_second, minlength=answers)
    return np.asarray(sums, dtype=np.float64)


def _conjugate_gradients(
    times_hessian: Any, gradient: Floats, gradient_eta: float, diagonal: Floats, diagonal_eta: float
) -> tuple[Floats, float]:
    """Solves Hessian (x, y) = gradient, preconditioned by the diagonal, to a hundredth of where it began.

    Closer as Newton's method closes in: the tolerance shrinks with the gradient (Dembo, Eisenstat and Steihaug 1982).
    """
    x, y = np.zeros_like(gradient), 0.0
    residual, residual_y = gradient.copy(), gradient_eta
    safe, safe_eta = np.maximum(diagonal, 1e-12), max(diagonal_eta, 1e-12)
    z, z_y = residual / safe, residual_y / safe_eta
    direction, direction_y = z.copy(), z_y
    product = float(residual @ z) + residual_y * z_y
    start = float(np.sqrt(gradient @ gradient + gradient_eta**2))
    goal = min(0.01, np.sqrt(start / max(len(gradient), 1))) * start
    for _ in range(200):
        hessian, hessian_y = times_hessian(direction, direction_y)
        bend = float(direction @ hessian) + direction_y * hessian_y
        if bend <= 0:
            break
        length = product / bend
        x, y = x + length * direction, y + length * direction_y
        residual, residual_y = residual - length * hessian, residual_y - length * hessian_y
        if float(residual @ residual) + residual_y**2 <= goal**2:
            break
        z, z_y = residual / safe, residual_y / safe_eta
        product, before = float(residual @ z) + residual_y * z_y, product
        direction, direction_y = z + product / before * direction, z_y + product / before * direction_y
    return x, y
