"""Random numbers that know their place, and tokens drawn with them.

Tokens are drawn by the Gumbel-max trick (Maddison et al. 2014, arXiv 1411.0030), because of what rounding does to a
draw: another batch size moves float32 logits by some 1e-5. Inverting the running sum then changes one token in
a thousand, since each of the vocabulary's many boundaries moves; here it is one in tens of thousands.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

ROWS = 16
"""Rows handled at once: their probabilities (some 3 MB) stay in the processor's cache."""

BLOCK = 256
"""Tokens summed at once: first a block is drawn by its sum, then a token of it. A draw so takes some 450 random
numbers for a vocabulary of 49,152 rather than one a token, which would cost more than the logits do."""


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
        tokens[start : start + ROWS] = _draw(weights, uniforms[start : start + ROWS])
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


def _draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """A token of each row, (r,), with probability proportional to its weight; `weights` (r, blocks x BLOCK)."""
    r = len(weights)
    blocks = weights.view(r, -1, BLOCK)  # (r, blocks, BLOCK)
    block = _race(blocks.sum(-1), uniforms, 0)
    within = blocks[torch.arange(r, device=weights.device), block]  # (r, BLOCK)
    return block * BLOCK + _race(within, uniforms, 1)


def _race(weights: torch.Tensor, uniforms: torch.Tensor, level: int) -> torch.Tensor:
    """An index of each row, (r,), with probability proportional to its weight.

    The largest of weight / exponential number, which is Gumbel-max without the logarithm of the weights.
    """
    key = _mixed(uniforms.view(torch.int64) + level)[:, None]
    counter = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    bits = _mixed(key + counter * _GOLDEN) >> 11 & (2**53 - 1)  # (r, n)
    exponential = -torch.log((bits.to(torch.float64) + 0.5) * 2**-53)
    return (weights / exponential).argmax(dim=-1)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The output function of SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195), on int64."""
    x = (x ^ (x >> 30 & (2**34 - 1))) * _FIRST
    x = (x ^ (x >> 27 & (2**37 - 1))) * _SECOND
    return x ^ (x >> 31 & (2**33 - 1))


# SplitMix64's constants as signed numbers: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
