"""Hindsight: what the policy itself makes of an answer once it knows what was said of it.

Kleine Buening et al. 2026, arXiv 2603.12273. With o what was said of answer y to prompt x, both by the current policy:

    a_t = log p(y_t | x, o, y_<t) - log p(y_t | x, y_<t)           without gradients
    L = -1/T sum_t a_t log p(y_t | x, y_<t)

The first `SKIPPED` tokens are left out, where another end of the prompt changes the most. The policy that knows what
was said does not see the answer that it was said of. In the paper o is a user's next message; here it is a critique.

A policy that cannot read critiques in its prompt would be trained on noise. So before the first step its signal, the
mean of a_t, is looked at (`entry_test.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_loop.critique_methods import Hindsight
from rlhf_loop.errors import UserError
from rlhf_loop.models.turns import Tokens
from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.updates.terms.entry_test import FEWEST, Signal, signal, unrelated
from rlhf_loop.updates.terms.examples import Context, LeftOut
from rlhf_loop.updates.terms.rows import row_means
from rlhf_loop.updates.terms.term import Read

TOLD = "An earlier answer was told: {critique}\nTake it into account."
"""What is added to a prompt, so that the answer that is asked for heeds the critique."""

SKIPPED = 2
"""Tokens at the beginning of an answer that take no part."""

TESTED = 256
"""Answers that the entry test reads at most."""


def hindsight_losses(told: torch.Tensor, untold: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each answer, (B,), and its signal, the mean advantage in nats a token, (B,) without gradients.

    `told`, `untold`: log-probabilities of answers' tokens with what was said in the prompt and without, (B, T);
    `mask`: 1 at the tokens. Gradients go through `untold` alone.
    """
    counted = mask.clone()
    counted[:, :SKIPPED] = 0
    advantages = (told - untold).detach()
    return row_means(-advantages * untold, counted), row_means(advantages, counted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An answer after its prompt with what was said of it, and without."""

    untold: Tokens
    told: Tokens
    row: CritiquedCompletion


class HindsightTerm:
    """The term of critiques with words, of good answers and bad ones."""

    name = "hindsight"

    def __init__(self, settings: Hindsight, rows: Sequence[CritiquedCompletion], context: Context, seed: int):
        self.weight, self.batch_size = settings.weight, settings.batch_size
        self.settings, self.context, self.seed = settings, context, seed
        made = context.examples(rows, lambda row: _example(row, row.critique, context))
        self.examples, self.counts = made.examples, made.counts()

    def loss(self, read: Read, examples: Sequence[Example]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Term`; also the signal."""
        with torch.no_grad():
            told, _ = read([example.told for example in examples])
        untold, mask = read([example.untold for example in examples])
        losses, signals = hindsight_losses(told, untold, mask)
        return losses.mean(), {"signal": signals.mean()}

    def check(self, read: Read) -> dict[str, float]:
        """The entry test: `UserError` with the numbers where the policy cannot tell right critiques from others.

        Not of critiques that were moved to other answers on purpose (`control: shuffled`).
        """
        if not self.settings.entry_test or any(example.row.said_of is not None for example in self.examples):
            return {}
        found = self._signal(read)
        if not found.is_clear(self.settings.unrelated_share):
            raise UserError(
                "critiques.hindsight: the policy does not know what to make of critiques in its prompt: "
                f"{found.said(self.settings.unrelated_share)}. Training on that would be training on noise. Leave "
                "`hindsight` out, or use `predict`, which needs no such skill, or a larger policy; "
                "`critiques.hindsight.entry_test=false` trains all the same"
            )
        return {
            "right": found.right,
            "unrelated": found.unrelated,
            "difference_low": found.low,
            "difference_high": found.high,
        }

    def _signal(self, read: Read) -> Signal:
        """Of at most `TESTED` answers, spread over the prompts."""
        tested: list[tuple[Example, Example]] = []
        for example, other in unrelated(self.examples, lambda example: example.row, self.seed):
            if len(tested) == TESTED:
                break
            try:
                tested.append((example, _example(example.row, other.row.critique, self.context)))
            except LeftOut:  # too long with the other critique
                continue
        if len({example.row.prompt_id for example, _ in tested}) < FEWEST:
            raise UserError(
                f"critiques.hindsight: its entry test needs critiques of {FEWEST} prompts or more that differ from one "
                f"another, and there are {len({example.row.prompt_id for example, _ in tested})}: collect more, leave "
                "`hindsight` out, or set `critiques.hindsight.entry_test=false`"
            )
        untold = self._means(read, [example.untold for example, _ in tested])
        return signal(
            right=self._means(read, [example.told for example, _ in tested]) - untold,
            unrelated=self._means(read, [other.told for _, other in tested]) - untold,
            groups=[example.row.group for example, _ in tested],
            seed=self.seed,
        )

    def _means(self, read: Read, sequences: Sequence[Tokens], batch: int = 4) -> torch.Tensor:
        """The mean log-probability of each answer's tokens but the first, float64 (sequences,)."""
        means = []
        with torch.no_grad():
            for start in range(0, len(sequences), batch):
                log_probs, mask = read(sequences[start : start + batch])
                mask[:, :SKIPPED] = 0
                means.append(row_means(log_probs, mask).double().cpu())
        return torch.cat(means)


def _example(row: CritiquedCompletion, critique: str, context: Context) -> Example:
    if not row.critique:
        raise LeftOut("no words")
    untold = context.answer(row)
    if len(untold.answer) <= SKIPPED:
        raise LeftOut(f"answers of {SKIPPED} tokens or fewer")
    told = context.answer(row, TOLD.format(critique=critique))
    if told.answer != untold.answer:
        raise LeftOut("other tokens after another prompt")
    return Example(untold=untold, told=told, row=row)
