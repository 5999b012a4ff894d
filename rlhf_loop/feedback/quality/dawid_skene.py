"""How reliable each annotator is, and what each pair's true verdict probably is, from who said what.

A. P. Dawid and A. M. Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm (1979): each
unit has one true value; given it, annotators answer independently, each by a confusion matrix of their own. Departures:

- the sides of a pair are exchangeable, so a matrix gives the same errors whichever side is better;
- each row of a matrix has `pseudo_votes` votes as the crowd gives them before the first vote is counted (a Dirichlet
  prior), since most annotators of a crowd judge too few pairs for 16 numbers. 0 is the method of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.votes import FIRST, SECOND, SWAPPED, Votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PSEUDO_VOTES = 4.0
MOST_ITERATIONS = 300
TOLERANCE = 1e-7  # of the objective, for each vote
_LEAST = 1e-12  # a probability whose logarithm is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class DawidSkene:
    """What expectation-maximisation came to, for U units, A annotators and K values."""

    posterior: Floats  # (U, K) how probable each value is the true one
    confusion: Floats  # (A, K, K) P(annotator says l | the truth is k)
    prevalence: Floats  # (K,)
    objective: list[float]  # log-likelihood (and log prior) after each iteration: it never falls
    converged: bool

    @property
    def accuracy(self) -> Floats:
        """(A,) the probability that an annotator's verdict is the true one."""
        return np.asarray(np.einsum("k,akk->a", self.prevalence, self.confusion), dtype=np.float64)

    @property
    def weight(self) -> Floats:
        """(A,) P(backs the better side) - P(backs the worse side) where one is better: 1 never errs, 0 guesses.

        Annotators who do worse than guessing get 0.
        """
        return np.clip(self.confusion[:, FIRST, FIRST] - self.confusion[:, FIRST, SECOND], 0.0, 1.0)


def reliability(votes: Votes, pseudo_votes: float = PSEUDO_VOTES) -> DawidSkene:
    """Dawid and Skene's model of preferences; an annotator who judged a pair several times counts each time."""
    return dawid_skene(
        votes.unit,
        votes.annotator,
        votes.verdict,
        units=votes.units,
        annotators=len(votes.annotators),
        values=4,
        swapped=SWAPPED,
        pseudo_votes=pseudo_votes,
    )


def dawid_skene(
    unit: Ints,
    annotator: Ints,
    value: Ints,
    *,
    units: int,
    annotators: int,
    values: int,
    swapped: Ints | None = None,
    pseudo_votes: float = PSEUDO_VOTES,
    most_iterations: int = MOST_ITERATIONS,
    tolerance: float = TOLERANCE,
) -> DawidSkene:
    """Fits the model to N answers, given as three columns (N,) of numbers from 0.

    `swapped` (K,) names the value that each becomes when the unit is turned around; None where values mean something
    by themselves. Starts from the shares of the values of each unit; stops when the objective grows by less than
    `tolerance` a vote. A second for 100,000 votes.
    """
    given = annotator * values + value  # which entry of which annotator's matrix a vote reads, in each of its rows
    posterior = np.bincount(unit * values + value, minlength=units * values).reshape(units, values).astype(np.float64)
    judged = posterior.sum(1, keepdims=True)
    posterior = np.where(judged > 0, posterior / np.maximum(judged, 1), 1 / values)
    pooled = np.stack([np.bincount(value, posterior[unit, k], minlength=values) for k in range(values)])
    unseen = pooled.sum(1, keepdims=True) == 0
    pooled = pooled + np.eye(values) * unseen  # nobody has erred on a value that nobody gave
    prior = pseudo_votes * _rows(_turned(pooled, swapped))  # (K, K)
    objective: list[float] = []
    for _ in range(most_iterations):
        # M: prevalence and confusion matrices, from the expected true values
        prevalence = posterior.mean(0) if units else np.full(values, 1 / values)
        if swapped is not None:
            prevalence = (prevalence + prevalence[swapped]) / 2
        counts = np.empty((annotators, values, values))
        for k in range(values):
            expected = posterior[:, k][unit]
            counts[:, k] = np.bincount(given, expected, minlength=annotators * values).reshape(annotators, values)
        confusion = _rows(_turned(counts, swapped) + prior)
        # E: expected true values, from the matrices
        log_confusion = np.log(np.maximum(confusion, _LEAST))
        joint = np.empty((units, values))
        for k in range(values):
            joint[:, k] = np.bincount(unit, log_confusion[:, k].ravel()[given], minlength=units)
        joint += np.log(np.maximum(prevalence, _LEAST))
        highest = joint.max(1, keepdims=True, initial=-np.inf)
        np.exp(joint - highest, out=joint)
        total = joint.sum(1, keepdims=True)
        posterior = joint / total
        objective.append(float((np.log(total) + highest).sum() + (prior * log_confusion).sum()))
        if len(objective) > 1 and objective[-1] - objective[-2] < tolerance * max(len(unit), 1):
            break
    return DawidSkene(
        posterior=posterior,
        confusion=confusion,
        prevalence=prevalence,
        objective=objective,
        converged=len(objective) < most_iterations,
    )


def _turned(counts: NDArray[Any], swapped: Ints | None) -> Floats:
    """The mean of counts (..., K, K) and of the same counts with every unit turned around."""
    turned = counts if swapped is None else (counts + counts[..., swapped, :][..., swapped]) / 2
    return np.asarray(turned, dtype=np.float64)


def _rows(counts: NDArray[Any]) -> Floats:
    """Rows that sum to 1; one without counts is uniform."""
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1), 1 / counts.shape[-1])
