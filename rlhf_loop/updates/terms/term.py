"""What a term is, and how the policy's log-probabilities reach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlhf_loop.models.turns import Tokens

Read = Callable[[Sequence[Tokens]], tuple[torch.Tensor, torch.Tensor]]
"""(B sequences) -> log-probabilities of their answers' tokens, and 1 at each of these; (B, T), padded on the right."""


class Term(Protocol):
    """A loss beside an update's own."""

    name: str  # in the recipe's `critiques:` block
    weight: float  # of the loss
    batch_size: int | None  # examples beside each batch of the update's; None: as many as that has rows
    examples: Sequence[Any]  # what there is to train on
    counts: Mapping[str, Any]  # `examples`, how many; `left_out`, rows of which there are none, by reason

    def loss(self, read: Read, examples: Sequence[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of some of the examples, a mean over them, and further metrics by their names (scalars)."""
        ...

    def check(self, read: Read) -> dict[str, float]:
        """Asked once before the first step, with the policy that the training starts from: gives metrics of that.

        Raises `UserError` where the policy cannot learn this way.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """What can be trained on, and how many rows were left out, by reason."""

    examples: tuple[Any, ...]
    left_out: Counter[str]

    def counts(self) -> dict[str, Any]:
        """For the metrics of the update."""
        return {"examples": len(self.examples), "left_out": dict(self.left_out)}


def log_probs_of(model: Any, sequences: Sequence[Tokens], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Read`; `model` is one that a trainer of TRL gave its fused head (`model(..., fused_lm_head=True)`), which
    computes logits where there are labels and nowhere else: here at the answers' tokens.

    Padding is told from tokens by the lengths, not by its id, which is a token's too (SmolLM2's is its eos).
    """
    starts = torch.tensor([len(one.prompt) for one in sequences])
    lengths = torch.tensor([len(one.answer) for one in sequences])
    width, longest = int((starts + lengths).max()), int(lengths.max())
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, one in enumerate(sequences):
        ids[row, : len(one.prompt) + len(one.answer)] = torch.tensor([*one.prompt, *one.answer])
    at = torch.arange(width)[None]
    attention = at < (starts + lengths)[:, None]  # (B, L)
    is_answer = attention & (at >= starts[:, None])
    output = model(
        input_ids=ids.to(device),
        attention_mask=attention.long().to(device),
        use_cache=False,
        labels=ids.masked_fill(~is_answer, -100).to(device),
        fused_lm_head=True,
    )
    place = torch.arange(longest)[None]  # (1, T)
    mask = place < lengths[:, None]
    predicted = (starts[:, None] - 1 + place).clamp(max=width - 2).to(device)  # the position before each token
    return output.log_probs.gather(1, predicted), mask.float().to(device)
