"""Which prompts a round answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, Prompt, stable_id
from rlhf_loop.rows.critiques.fresh import answers


def prompts_of_round(
    prompts: Sequence[Prompt],
    number: int | None,
    *,
    seed: int,
    round: int,
    critiques: Path | None = None,
    feedback_rounds: int | None = None,
) -> list[Prompt]:
    """All prompts (`number` None), or so many of them drawn anew each round, as a function of seed and round.

    `critiques`: the file of what was said of answers, where a method learns from fresh answers to what was complained
    of; then prompts with a complaint that the next round may learn from (`pairing.feedback_rounds`) go first.
    """
    if number is None or number >= len(prompts):
        return list(prompts)
    first: set[str] = set()
    if critiques is not None:
        rows: list[CritiquedCompletion] = read_records(critiques, CritiquedCompletion)
        recent = [row for row in rows if feedback_rounds is None or row.round >= round + 1 - feedback_rounds]
        first = {answer.prompt_id for answer in answers(recent)}
    drawn = sorted(prompts, key=lambda p: (p.id not in first, stable_id("prompts of round", seed, round, p.id)))
    wanted = {prompt.id for prompt in drawn[:number]}
    return [prompt for prompt in prompts if prompt.id in wanted]
