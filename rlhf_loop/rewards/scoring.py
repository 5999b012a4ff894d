"""Running a model over many texts: sorted by length, in batches of a bounded number of tokens, without gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rlhf_loop.batches import batches
from rlhf_loop.progress import Count

logger = logging.getLogger(__name__)


def over_long(rows: Sequence[Sequence[int]], limit: int) -> list[int]:
    """The numbers of the rows of more than `limit` tokens; a warning says how many there are."""
    over = [number for number, row in enumerate(rows) if len(row) > limit]
    if over:
        logger.warning(
            "%d of %d texts are longer than %d tokens; the beginnings are cut off", len(over), len(rows), limit
        )
    return over


def ends(rows: Sequence[list[int]], limit: int) -> list[list[int]]:
    """The rows, those of more than `limit` tokens without their beginnings, as a warning says."""
    over_long(rows, limit)
    return [row[-limit:] for row in rows]


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask`, both (B, T), padded on the right to the longest row."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids.to(device), mask.to(device)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def in_batches(
    forward: Callable[[torch.Tensor, torch.Tensor, list[int]], torch.Tensor],
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: Any,
    budget: int,
    progress: Count | None = None,
) -> torch.Tensor:
    """`forward(input_ids (B, T), attention_mask (B, T), numbers of the texts)` of all rows, in the rows' order.

    `forward` gives one row of results a text: (B, ...). The result is (N, ...), float32, on the CPU.
    """
    results: list[torch.Tensor | None] = [None] * len(rows)
    done = 0
    for numbers, ids, mask in _batches(rows, pad_id, device, budget):
        output = forward(ids, mask, numbers).float().cpu()
        for number, result in zip(numbers, output, strict=True):
            results[number] = result
        done += len(numbers)
        if progress:
            progress(done, len(rows))
    return torch.stack([result for result in results if result is not None]) if rows else torch.empty(0)


def _batches(
    rows: Sequence[Sequence[int]], pad_id: int, device: Any, budget: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    for numbers in batches([len(row) for row in rows], budget):
        yield numbers, *padded([rows[number] for number in numbers], pad_id, device)
