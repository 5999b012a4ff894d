"""Feedback modelling: the policy learns to say what would be said of its answer.

RLTF-FM (Song et al. 2026, arXiv 2602.02482): beside the update's own loss, with c the critique of answer y to prompt x,

    L = -weight * 1/|c| sum_t log p(c_t | x, y, question, c_<t)

It needs no skill to read a critique in the prompt, and nothing is generated. In the paper critiques are of answers that
the policy has just sampled; here they are stored with the answers that they are of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_loop.critique_methods import Predict
from rlhf_loop.models.turns import Tokens
from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.updates.terms.examples import Context, LeftOut
from rlhf_loop.updates.terms.rows import row_means
from rlhf_loop.updates.terms.term import Read

QUESTION = "What is good about that answer, and what should be different?"
"""What the critique is the answer to, as the turn after the policy's own."""


def predict_loss(log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over critiques of the mean negative log-probability of their tokens, a scalar.

    `log_probs`, `mask`: (B, T), 1 at a critique's tokens. A critique counts the same however long it is, so that the
    loss of a batch is the mean of those of its parts. Without a token it is 0.
    """
    return row_means(-log_probs, mask).mean()


class PredictTerm:
    """The term of critiques with words, of good answers and bad ones."""

    name = "predict"

    def __init__(self, settings: Predict, rows: Sequence[CritiquedCompletion], context: Context, seed: int):
        self.weight, self.batch_size = settings.weight, settings.batch_size
        made = context.examples(rows, lambda row: _critique(row, context))
        self.examples, self.counts = made.examples, made.counts()

    def check(self, read: Read) -> dict[str, float]:
        """Any policy can learn to say critiques."""
        return {}

    def loss(self, read: Read, examples: Sequence[Tokens]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Term`."""
        return predict_loss(*read(examples)), {}


def _critique(row: CritiquedCompletion, context: Context) -> Tokens:
    if not row.critique:
        raise LeftOut("no words")
    return context.critique(row, QUESTION)
