"""Texts in batches of a bounded number of tokens: of like length together, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Sequence


def batches(
    lengths: Sequence[int], tokens: int, outputs: Sequence[int] | None = None, most_outputs: int = 0
) -> list[list[int]]:
    """Numbers of texts in batches, longest first, with rows x longest <= `tokens` (a longer text goes alone).

    Longest first, so that memory that does not suffice is known of at once. Texts of one length keep their order.
    `outputs`: for how many positions of each text something wide is computed, such as logits; rows x most outputs is
    then <= `most_outputs` too.
    """
    made: list[list[int]] = []
    longest = widest = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        output = 0 if outputs is None else outputs[number]
        rows = len(made[-1]) + 1 if made else 0
        if not made or rows * longest > tokens or rows * max(widest, output) > most_outputs:
            made.append([])
            longest, widest = max(1, lengths[number]), 0
        made[-1].append(number)
        widest = max(widest, output)
    return made
