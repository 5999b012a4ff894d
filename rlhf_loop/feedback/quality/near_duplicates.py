"""Texts that are almost the same, among millions: MinHash signatures and locality-sensitive hashing.

A. Broder, On the resemblance and containment of documents (1997): the share of equal minima of two sets under random
hash functions estimates their Jaccard similarity. The sets are those of a text's runs of three words, in lower case.
Of 80 functions in 16 bands of 5, a pair with similarity .8 shares a band with probability 1 - (1 - .8^5)^16 = .998;
its estimate has a standard error of .045. Hashes do not depend on the process, so neither do results.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Signatures = NDArray[np.uint32]
Ints = NDArray[np.int64]

SIMILAR = 0.8
BANDS, ROWS = 16, 5
RUN = 3  # words
_BLOCK = 200_000  # words hashed at a time: what fits a processor's cache

_draw = np.random.default_rng(1997)
_MULTIPLIERS = _draw.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _draw.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """Groups of N texts that are near-duplicates, directly or through others."""

    number: Ints  # (N,) the smallest row of the text's group: its own where it is like no other
    similarity: NDArray[np.float64]  # (N,) estimated, to the nearest text that was found; 0 for none

    def groups(self) -> list[list[int]]:
        """Rows of each group of two or more, the largest group first."""
        order = np.argsort(self.number, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.number[order])) + 1) if len(order) else []
        return sorted((part.tolist() for part in parts if len(part) > 1), key=lambda rows: (-len(rows), rows))


def signatures(texts: Iterable[str]) -> Signatures:
    """(N, 80) MinHash signatures of texts; memory is 320 bytes a text. Half a minute a million words."""
    blocks: list[Signatures] = []
    known: dict[str, int] = {}
    words, lengths = array("Q"), array("q")
    for text in texts:
        split = text.lower().split()
        for word in split:
            value = known.get(word)
            if value is None:
                value = known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1
            words.append(value)
        missing = max(0, RUN - len(split))
        words.extend([0] * missing)  # a text of fewer words than a run is one run
        lengths.append(len(split) + missing)
        if len(words) >= _BLOCK:
            blocks.append(_signatures(words, lengths))
            words, lengths = array("Q"), array("q")
            if len(known) > 2_000_000:
                known.clear()
    if lengths:
        blocks.append(_signatures(words, lengths))
    return np.concatenate(blocks) if blocks else np.zeros((0, BANDS * ROWS), dtype=np.uint32)


def similarity(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """(P,) estimated Jaccard similarity of texts, row by row, from their signatures (P, 80)."""
    return np.asarray((one == other).mean(1), dtype=np.float64)


def clusters(of: Signatures, similar: float = SIMILAR) -> Clusters:
    """Groups of texts whose estimated similarity is at least `similar`, from their signatures (N, 80).

    Within a band, texts with equal hashes are compared with the next one of them only: a group of n costs n
    comparisons, and other bands join what one leaves apart.
    """
    n = len(of)
    found: list[NDArray[np.int64]] = []
    for band in range(BANDS):
        part = np.ascontiguousarray(of[:, band * ROWS : (band + 1) * ROWS]).view(f"V{4 * ROWS}").ravel()
        order = np.argsort(part, kind="stable")
        ordered = part[order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        found.append(np.stack([order[same], order[same + 1]], axis=1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0) if n else np.zeros((0, 2), dtype=np.int64)
    near = np.concatenate(
        [similarity(of[part[:, 0]], of[part[:, 1]]) for part in np.array_split(pairs, len(pairs) // 100_000 + 1)]
    )
    pairs, near = pairs[near >= similar], near[near >= similar]
    nearest = np.zeros(n)
    np.maximum.at(nearest, pairs.ravel(), np.repeat(near, 2))
    return Clusters(number=_joined(pairs, n), similarity=nearest)


def _signatures(words: array[int], lengths: array[int]) -> Signatures:
    run = np.array(words, dtype=np.uint64)
    size = np.array(lengths, dtype=np.int64)
    end = np.cumsum(size)
    hashes = _mixed(_mixed(_mixed(run)[:-2] + run[1:-1])[:] + run[2:])
    # runs that reach into the next text are left out
    inside = np.ones(len(run), dtype=bool)
    inside[np.concatenate([end - 1, end - 2])] = False
    hashes = hashes[inside[: len(hashes)]]
    starts = np.concatenate([[0], np.cumsum(size - (RUN - 1))[:-1]])
    made = np.empty((len(size), BANDS * ROWS), dtype=np.uint32)
    for place, (multiplier, offset) in enumerate(zip(_MULTIPLIERS, _OFFSETS, strict=True)):
        values = ((hashes * multiplier + offset) >> np.uint64(32)).astype(np.uint32)
        made[:, place] = np.minimum.reduceat(values, starts)
    return made


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of `x` (the finaliser of splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _joined(pairs: NDArray[np.int64], n: int) -> Ints:
    """(n,) the smallest row that each row is joined to by `pairs`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joins = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, part = connected_components(joins, directed=False)
    _, smallest = np.unique(part, return_index=True)
    return np.asarray(smallest[part], dtype=np.int64)
