"""Contrastive unlikelihood: what a critique complains of becomes less likely, the rest of the answer stays.

CUT (Xu et al. 2024, arXiv 2312.14591). A negative critique c of answer y to prompt x is a description of y. Asked for
an answer of which c would be said, a policy finds the tokens that c is about more likely than otherwise. So a token is
inappropriate where

    p(y_t | x, c, y_<t) / p(y_t | x, y_<t) > threshold

Without the critique it is made less likely (unlikelihood: Welleck et al. 2020, arXiv 1908.04319), the others are made
more likely; and the whole answer is what the policy is to say when it is asked for what c describes:

    L = 1/2 [ 1/T sum_t -log p(y_t | x, c, y_<t)
              + 1/T ( sum_proper -log p(y_t | x, y_<t) + weight * sum_inappropriate -log(1 - p(y_t | x, y_<t)) ) ]

Which tokens are inappropriate is settled without gradients. Of good answers L = -1/T sum_t log p(y_t | x, y_<t).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_loop.critique_methods import Unlikelihood
from rlhf_loop.models.turns import Tokens
from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.updates.terms.examples import Context, LeftOut, marked
from rlhf_loop.updates.terms.rows import row_means
from rlhf_loop.updates.terms.term import Read

TOLD = "Write an answer of which somebody would say: {critique}"
"""What is added to a prompt, so that the answer complained of is what is asked for."""

_SUREST = -1e-6
"""Of log p in -log(1 - p): where the policy is surer, 1 - p is lost in float32 and has no gradient."""


def unlikelihood_losses(
    told: torch.Tensor,
    untold: torch.Tensor,
    mask: torch.Tensor,
    *,
    threshold: float,
    weight: float,
    marked: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of answers that were complained of, (B,), and which tokens are inappropriate, (B, T) of 0 and 1.

    `told`, `untold`: log-probabilities of the answers' tokens with the critique in the prompt and without, (B, T);
    `mask`: 1 at the tokens. `weight`: of inappropriate tokens. `marked` (B, T): only there can a token be
    inappropriate.
    """
    with torch.no_grad():
        inappropriate = mask * (torch.exp(told - untold) > threshold)
        if marked is not None:
            inappropriate = inappropriate * marked
    unlikely = -torch.log(-torch.expm1(untold.clamp(max=_SUREST)))
    contrast = torch.where(inappropriate > 0, weight * unlikely, -untold)
    return (row_means(-told, mask) + row_means(contrast, mask)) / 2, inappropriate


def likelihood_losses(untold: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,): of good answers."""
    return row_means(-untold, mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An answer after its prompt; where it was complained of, also after the prompt with the critique."""

    untold: Tokens
    told: Tokens | None = None
    marked: tuple[bool, ...] | None = None  # the tokens that a person marked; None: nobody marked any


class UnlikelihoodTerm:
    """The term of answers that were complained of, and of some that were called good."""

    name = "unlikelihood"

    def __init__(self, settings: Unlikelihood, rows: Sequence[CritiquedCompletion], context: Context, seed: int):
        self.weight, self.batch_size = settings.weight, settings.batch_size
        self.threshold, self.penalty = settings.threshold, settings.penalty
        bad = context.examples([row for row in rows if row.label is False], lambda row: _complained_of(row, context))
        complaints = {row.completion_id for row in rows if row.label is False}
        praised = {row.completion_id: row for row in rows if row.label is True}
        called_good = {id: row for id, row in praised.items() if id not in complaints}
        good = context.examples(called_good.values(), lambda row: Example(untold=context.answer(row)))
        most = round(settings.good_share * len(bad.examples))
        kept = random.Random(seed).sample(good.examples, min(most, len(good.examples)))
        self.examples = (*bad.examples, *kept)
        left_out = bad.left_out + good.left_out
        left_out["nobody said whether it is good or bad"] = sum(row.label is None for row in rows)
        left_out["called good by one, complained of by another"] = len(praised) - len(called_good)
        left_out["more good answers than good_share"] = len(good.examples) - len(kept)
        self.counts = {
            "examples": len(self.examples),
            "good": len(kept),
            "marked": sum(example.marked is not None for example in bad.examples),
            "left_out": dict(+left_out),
        }

    def check(self, read: Read) -> dict[str, float]:
        """A policy that makes nothing of critiques finds no token inappropriate, and is trained on what it is told."""
        return {}

    def loss(self, read: Read, examples: Sequence[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Term`; also the share of tokens of answers complained of that are made less likely."""
        good = [example for example in examples if example.told is None]
        bad = [example for example in examples if example.told is not None]
        untold, mask = read([example.untold for example in (*bad, *good)])  # (B, T)
        # Where weights are shared out, all ranks have to make as many passes: one without complaints reads a good
        # answer again, which counts nothing.
        again = bad or good[:1]
        told, of_bad = read([example.told or example.untold for example in again])
        rows, width = of_bad.shape
        losses, inappropriate = unlikelihood_losses(
            told, untold[:rows, :width], of_bad, threshold=self.threshold, weight=self.penalty,
            marked=_padded([example.marked for example in again], width).to(of_bad.device),
        )  # fmt: skip
        of_good = likelihood_losses(untold[len(bad) :], mask[len(bad) :])
        if not bad:
            return of_good.mean() + 0 * losses.sum(), {"inappropriate": torch.full_like(mask.sum(), torch.nan)}
        return torch.cat([losses, of_good]).mean(), {"inappropriate": inappropriate.sum() / of_bad.sum()}


def _complained_of(row: CritiquedCompletion, context: Context) -> Example:
    if not row.critique:
        raise LeftOut("no words")
    untold = context.answer(row)
    told = context.answer(row, TOLD.format(critique=row.critique))
    if told.answer != untold.answer:
        raise LeftOut("other tokens after another prompt")
    return Example(
        untold=untold,
        told=told,
        marked=marked(untold.answer, row.text, row.spans, context.turns) if row.spans else None,
    )


def _padded(rows: Sequence[tuple[bool, ...] | None], width: int) -> torch.Tensor:
    """(B, width) of 0 and 1; a row of which nothing is known is all 1."""
    result = torch.ones(len(rows), width)
    for number, row in enumerate(rows):
        if row is not None:
            result[number] = 0
            result[number, : len(row)] = torch.tensor(row, dtype=result.dtype)
    return result
