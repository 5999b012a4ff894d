"""Random numbers that know their place, and tokens drawn with them.

Each token is drawn by inverse transform with one uniform number, in the order of the vocabulary: a small change of
the logits then changes few tokens, and the same number gives comparable tokens under two policies.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

ROWS = 16
"""Rows handled at once: their probabilities (some 3 MB) stay in the processor's cache."""

BLOCK = 256
"""Tokens summed at once: a token is looked up in the sums of blocks first, then within its block."""


def uniforms(seed: int, round: int, prompt_id: str, sample: int, n: int) -> np.ndarray:
    """`n` numbers in [0, 1), (n,) float64, that depend on the arguments alone.

    Counter-based: Philox 4x64 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) under a key that is a
    hash of the arguments, so no draw depends on how many others were made before it.
    """
    place = json.dumps([seed, round, prompt_id, sample]).encode()
    key = int.from_bytes(hashlib.sha256(place).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random(n)


def sample_tokens(
    logits: torch.Tensor,  # (R, V)
    uniforms: torch.Tensor,  # (R,) float64 in [0, 1)
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> torch.Tensor:  # (R,) int64
    """One token a row from softmax(logits / temperature), limited to the `top_k` and then the `top_p` likeliest.

    `top_p`: the smallest set whose probability reaches it (Holtzman et al. 2019, arXiv 1904.09751), after `top_k`
    (0: off). Tokens tied with the last one of a set are in it. Temperature 0 is argmax (the first of equals).
    Probabilities are float32, sums float64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    rows, vocabulary = logits.shape
    width = -(-vocabulary // BLOCK) * BLOCK
    buffer = torch.zeros(min(ROWS, rows), width, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    for start in range(0, rows, ROWS):
        part = logits[start : start + ROWS]
        weights = buffer[: len(part)]  # (r, width); beyond the vocabulary they stay 0
        inside = weights[:, :vocabulary]
        inside.copy_(part)
        inside -= inside.amax(dim=-1, keepdim=True)
        if temperature != 1:
            inside /= temperature
        inside.exp_()
        if top_k or top_p < 1:
            inside.masked_fill_(inside < _smallest_kept(inside, top_p, top_k), 0)
        tokens[start : start + ROWS] = _invert(weights, uniforms[start : start + ROWS])
    return tokens


def _smallest_kept(weights: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """The smallest weight among the kept tokens, (r, 1); `weights` (r, V) need not sum to 1."""
    vocabulary = weights.shape[1]
    likeliest = min(top_k, vocabulary) if top_k else min(512, vocabulary)
    while True:
        top = weights.topk(likeliest, dim=-1).values  # (r, k), descending
        if top_p == 1:
            return top[:, -1:]
        total = top.sum(-1, dtype=torch.float64) if top_k else weights.sum(-1, dtype=torch.float64)
        before = top.cumsum(-1, dtype=torch.float64) - top  # of the tokens that are likelier
        kept = before < top_p * total[:, None]  # (r, k)
        if top_k or likeliest == vocabulary or not kept[:, -1].any():
            return top.gather(1, kept.sum(-1, keepdim=True) - 1)
        likeliest = min(8 * likeliest, vocabulary)  # a flat distribution: look at more of it


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """For each row the token where the running sum of its weights passes `uniforms` of the total."""
    r = len(weights)
    blocks = weights.view(r, -1, BLOCK)  # (r, blocks, BLOCK)
    sums = blocks.sum(-1)  # (r, blocks)
    ends = sums.cumsum(-1, dtype=torch.float64)
    target = uniforms.to(ends)[:, None] * ends[:, -1:]  # (r, 1)
    # counting ends <= target never stops at an empty block: its end equals the one before
    block = (ends <= target).sum(-1, keepdim=True).clamp_(max=ends.shape[1] - 1)
    start = ends.gather(1, block) - sums.gather(1, block)
    share = ((target - start) / sums.gather(1, block)).clamp_(0, 1 - 2**-40)
    inside = blocks[torch.arange(r, device=weights.device), block[:, 0]].cumsum(-1, dtype=torch.float64)  # (r, BLOCK)
    return block[:, 0] * BLOCK + (inside <= share * inside[:, -1:]).sum(-1)
