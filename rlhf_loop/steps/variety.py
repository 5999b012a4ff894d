"""How varied a round's candidates are, and how much of them the round before had written already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.ngrams import distinct_share, self_bleu, shared
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion
from rlhf_loop.resampling import grouped_mean

OVERLAP = 4
"""Words of a run that counts as repeated."""


def variety(candidates: Sequence[Completion], before: Path | None, seed: int) -> dict[str, Any]:
    """`{distinct_2, self_bleu, overlap}`, each `{mean, low, high, n}` or None; `before`: the file of the last round's
    candidates.

    `distinct_2` and `self_bleu` are taken among the answers to one prompt, and averaged over prompts; only those of
    rounds with as many samples of a prompt can be compared. `overlap`: the share of an answer's 4-grams that stand in
    the last round's answers to its prompt. Intervals resample prompts.
    """
    answers = _by_prompt(candidates)
    several = {prompt: [c.text for c in group] for prompt, group in answers.items() if len(group) > 1}
    earlier = {} if before is None else _by_prompt(read_records(before, Completion))
    overlaps = [
        (share, prompt)
        for prompt, group in answers.items()
        if prompt in earlier
        for completion in group
        if (share := shared(completion.text, [c.text for c in earlier[prompt]], OVERLAP)) is not None
    ]
    return {
        "distinct_2": _mean([(distinct_share(texts, 2), prompt) for prompt, texts in several.items()], seed),
        "self_bleu": _mean([(self_bleu(texts), prompt) for prompt, texts in several.items()], seed),
        "overlap": _mean(overlaps, seed),
    }


def _by_prompt(completions: Sequence[Completion]) -> dict[str, list[Completion]]:
    groups: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        groups[completion.prompt_id].append(completion)
    return groups


def _mean(measured: Sequence[tuple[float | None, str]], seed: int) -> dict[str, Any] | None:
    """Over what could be measured."""
    known = [(value, prompt) for value, prompt in measured if value is not None]
    return grouped_mean([value for value, _ in known], [prompt for _, prompt in known], seed=seed)
