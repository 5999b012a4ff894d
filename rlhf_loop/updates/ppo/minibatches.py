"""Micro-batches of a rollout: which tokens count, and how much of their width is padding alone."""

from __future__ import annotations

from typing import Any, cast

import torch

from rlhf_loop.updates.ppo.advantages import Sum

_BY_TOKEN = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "old_values",
    "advantages",
    "returns",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
"""Entries of a batch that are (B, T), padded on the right."""


def loss_mask(batch: dict[str, Any]) -> torch.Tensor:
    """1 for each token that the policy sampled in a completion that was scored, (B, T)."""
    mask = batch["completion_mask"]
    if "tool_mask" in batch:
        mask = mask * batch["tool_mask"]
    return cast(torch.Tensor, mask * batch["scored"][:, None] if "scored" in batch else mask)


def trimmed(batches: list[dict[str, Any]], *, prompts: bool) -> list[dict[str, Any]]:
    """The batches without columns that are padding in every row, those of `prompts` only when asked for."""
    sizes = torch.stack(
        [torch.stack([b["prompt_mask"].sum(1).max(), b["completion_mask"].sum(1).max()]) for b in batches]
    ).tolist()  # one wait for the device, for all of them
    result = []
    for batch, (prompt, completion) in zip(batches, sizes, strict=True):
        width = batch["completion_ids"].shape[1]
        cut = dict(batch)
        for name in ("prompt_ids", "prompt_mask") if prompts else ():  # padded on the left
            cut[name] = batch[name][:, batch[name].shape[1] - prompt :]
        for name in _BY_TOKEN:
            if name in batch and batch[name] is not None and batch[name].dim() == 2 and batch[name].shape[1] == width:
                cut[name] = batch[name][:, :completion]
        result.append(cut)
    return result


def counted(batches: list[dict[str, Any]], accumulated: int, total: Sum) -> list[dict[str, Any]]:
    """Micro-batches, each with the number of tokens (all ranks) in the minibatch of `accumulated` that it is in."""
    counts = total(torch.stack([loss_mask(batch).sum() for batch in batches]).float())
    windows = counts.view(-1, accumulated).sum(1).repeat_interleave(accumulated)
    return [{**batch, "minibatch_tokens": tokens} for batch, tokens in zip(batches, windows, strict=True)]
