"""Means over the tokens of each row of a batch."""

from __future__ import annotations

import torch


def row_means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,) means of `values` (B, T) over the tokens of each row where `mask` (B, T) is 1; 0 in a row without one."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
