"""Pairs side by side: one row a pair, its prompt once, then the chosen answer, then the rejected one, which does not
see the chosen one (Wang & Hegde 2024, arXiv 2410.20305). A prompt is read, and trained through, once and not twice.

    prompt without its last token | last token, chosen | last token, rejected | padding

Each answer follows the prompt's last token in a part of its own, so that every position has one next token at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_loop.machine import GROUPED

_SHARED, _CHOSEN, _REJECTED, _PADDING = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRows:
    """A batch of TRL's preference collator, (2B, T), as B rows of S tokens."""

    input_ids: torch.Tensor  # (B, S)
    position_ids: torch.Tensor  # (B, S), those that the tokens have in a sequence of their own
    labels: torch.Tensor  # (B, S), each position's next token, -100 where none is trained
    seen: torch.Tensor  # (B, 1, S, S) bool: query, key
    place: torch.Tensor  # (2B, T - 1): where in its row the label of TRL's position is predicted; -1: there is none

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to attention scores: 0 for what is seen."""
        return torch.zeros(self.seen.shape, dtype=dtype, device=self.seen.device).masked_fill_(
            ~self.seen, torch.finfo(dtype).min
        )

    def as_trl_has_them(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the rows' positions, (B, S), at TRL's, (2B, T - 1); 0 where no label is trained."""
        return torch.cat([values, values]).gather(1, self.place.clamp(min=0)).masked_fill(self.place < 0, 0)


def pair_rows(batch: Mapping[str, torch.Tensor]) -> PairRows:
    """The rows of a batch: chosen answers in its first half, rejected ones in its second, padded on the right.

    What two sequences share is what both begin with, up to the prompt's last token: with prompts that were cut to
    different lengths (`truncation_mode: keep_end`) nothing.
    """
    ids, completion = batch["input_ids"], batch["completion_mask"]  # (2B, T)
    lengths, first = batch["attention_mask"].sum(1), completion.argmax(1)  # (2B,): tokens, the answer's first
    chosen, rejected = ids.chunk(2)
    alike = (chosen == rejected).long().cumprod(1).sum(1)
    shared = torch.minimum(alike, torch.minimum(*first.chunk(2)) - 1).clamp(min=0)[:, None]  # (B, 1)
    of_chosen, of_rejected = (part[:, None] for part in lengths.chunk(2))
    at = torch.arange(int((of_chosen + of_rejected - shared).max()), device=ids.device)[None]  # (1, S)
    segment = torch.where(at < shared, _SHARED, torch.where(at < of_chosen, _CHOSEN, _REJECTED))
    segment = segment.masked_fill(at >= of_chosen + of_rejected - shared, _PADDING)  # (B, S)
    position = torch.where(segment == _REJECTED, at - of_chosen + shared, at)
    inside = torch.where(segment == _PADDING, 0, position)
    last = ids.shape[1] - 1

    def read(sequences: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        of_chosen, of_rejected = (part.gather(1, at) for part in sequences.chunk(2))
        return torch.where(segment == _REJECTED, of_rejected, of_chosen)

    following = (inside + 1).clamp(max=last)
    trained = (segment == _CHOSEN) | (segment == _REJECTED)
    trained &= (read(completion, following) > 0) & (inside < last)
    of_query, of_key = segment[:, None, :, None], segment[:, None, None, :]
    seen = (at[0, :, None] >= at[0]) & ((of_key == _SHARED) | (of_key == of_query))  # (B, 1, S, S)
    place = torch.arange(last, device=ids.device).expand(len(ids), -1)  # (2B, T - 1)
    offset = torch.cat([torch.zeros_like(shared), of_chosen - shared])
    return PairRows(
        input_ids=read(ids, inside),
        position_ids=inside,
        labels=read(ids, following).masked_fill(~trained, -100),
        seen=seen,
        place=(place + offset).masked_fill(completion[:, 1:] == 0, -1),
    )


def worth_it(rows: PairRows, batch: Mapping[str, torch.Tensor], hidden_size: int) -> bool:
    """Whether the rows take fewer multiplications than TRL's batch. A layer of width H takes 24 H^2 of them for the
    products of a token with its weights, and 4 H for each token of the row that it attends to."""

    def cost(ids: torch.Tensor) -> int:
        rows, width = int(ids.shape[0]), int(ids.shape[1])
        return rows * width * (6 * hidden_size + width)

    return cost(rows.input_ids) < cost(batch["input_ids"])


def may_be_rows(config: Any, length: int) -> bool:
    """Whether attention takes a mask of its own, and sequences of `length` tokens are within every layer's window."""
    if config._attn_implementation not in ("eager", "sdpa", GROUPED):
        return False
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(window is None or window >= length for window in windows)


def alike_in_rows(backbone: Any, batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether a model gives the same for the first pair of a batch side by side, to rounding.

    Not those whose layers carry more than attention from token to token (convolutions, states), nor those that take
    positions from the mask.
    """
    pair = {name: batch[name].chunk(2) for name in ("input_ids", "attention_mask", "completion_mask")}
    first = {name: torch.stack([chosen[0], rejected[0]]) for name, (chosen, rejected) in pair.items()}
    rows = pair_rows(first)
    apart = backbone(
        input_ids=first["input_ids"], attention_mask=first["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1].float()  # (2, T - 1, H)  # fmt: skip
    together = backbone(
        input_ids=rows.input_ids, attention_mask=rows.mask(backbone.dtype), position_ids=rows.position_ids,
        use_cache=False,
    ).last_hidden_state[0].float()[rows.place.clamp(min=0)]  # fmt: skip
    wanted = rows.place >= 0
    difference = (together - apart)[wanted].norm() / apart[wanted].norm().clamp(min=1e-6)
    return bool(difference < (1e-3 if backbone.dtype == torch.float32 else 0.05))
