"""Batch elements: a prompt with all its pairs, whose texts are forwarded once (InstructGPT, arXiv 2203.02155, section
3.5)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.records import PreferencePair

logger = logging.getLogger(__name__)


def elements(
    pairs: Sequence[PreferencePair],
    indices: Sequence[tuple[int, int]],
    ids: Sequence[list[int]],
    *,
    max_length: int,
    max_texts: int,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The pairs of each prompt as one row `{texts, numbers, chosen, rejected, margin, group}`, and counts of what is in
    them. `indices`: for each pair the numbers of its texts, whose token ids are `ids`.

    A prompt with more than `max_texts` texts becomes several rows, some of its texts being in more than one. Pairs
    with a side longer than `max_length` tokens are left out and counted as `dropped_too_long`. Raises `UserError` when
    none is left.
    """
    kept: dict[str, list[int]] = {}
    for number, (pair, sides) in enumerate(zip(pairs, indices, strict=True)):
        if all(len(ids[side]) <= max_length for side in sides):
            kept.setdefault(pair.prompt_id, []).append(number)
    used = sum(len(numbers) for numbers in kept.values())
    if not used:
        longest = max((len(row) for row in ids), default=0)
        raise UserError(
            f"none of {len(pairs)} pairs can train the reward model: the longest text has {longest} tokens and "
            f"max_length is {max_length}. Raise `max_length` in its reward_model.yaml"
            if pairs
            else "there are no pairs to train the reward model on"
        )
    if used < len(pairs):
        left_out = len(pairs) - used
        logger.warning("%d of %d pairs are longer than %d tokens and left out", left_out, len(pairs), max_length)
    rows = []
    lengths = []
    for part in [part for numbers in kept.values() for part in _split(numbers, indices, max_texts)]:
        local = {side: i for i, side in enumerate(dict.fromkeys(s for n in part for s in indices[n]))}
        lengths += [len(ids[side]) for side in local]
        rows.append(
            {
                "texts": [ids[side] for side in local],
                "numbers": list(local),
                "chosen": [local[indices[n][0]] for n in part],
                "rejected": [local[indices[n][1]] for n in part],
                "margin": [float(pairs[n].margin) for n in part],
                "group": pairs[part[0]].group,
            }
        )
    counts: dict[str, float] = {
        "pairs": len(pairs),
        "pairs_used": used,
        "dropped_too_long": len(pairs) - used,
        "distinct_texts": len({side for numbers in kept.values() for n in numbers for side in indices[n]}),
        "texts_forwarded_per_epoch": len(lengths),
        "tokens_per_epoch": sum(lengths),
        "batch_elements": len(rows),
    }
    return rows, counts


def _split(numbers: list[int], indices: Sequence[tuple[int, int]], max_texts: int) -> list[list[int]]:
    """Pairs in parts that touch at most `max_texts` texts each.

    Texts are put into blocks of half that size, and a part holds the pairs between two blocks.
    """
    order = {side: i for i, side in enumerate(dict.fromkeys(s for n in numbers for s in indices[n]))}
    if len(order) <= max_texts:
        return [numbers]
    half = max(1, max_texts // 2)
    last = (len(order) - 1) // half
    parts: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        low, high = sorted(order[side] // half for side in indices[number])
        if low == high:  # inside one block: with a neighbour, where its texts are forwarded anyway
            low, high = (low, low + 1) if low < last else (low - 1, low)
        parts.setdefault((low, high), []).append(number)
    return list(parts.values())
