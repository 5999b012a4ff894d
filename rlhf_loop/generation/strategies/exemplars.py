"""The best answers to similar prompts stand before a prompt as earlier turns (dynamic in-context learning; Liu et al.
2021, arXiv 2101.06804, on choosing examples by similarity)."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_loop.generation import Asked
from rlhf_loop.generation.strategies.given import Given, Shown, Written
from rlhf_loop.records import Message, Prompt


def write(given: Given) -> Written:
    """`samples_per_prompt` answers to each prompt, those with exemplars after them."""
    written = Written(completions=[])
    asked = []
    for prompt in given.prompts:
        messages, shown = with_exemplars(given, prompt, [], written)
        note = {"strategy": "exemplars", "exemplars": shown} if shown else {}
        asked.append(Asked(prompt=prompt, messages=tuple(messages) if shown else None, note=note))
    groups = given.sample(asked, given.settings.samples_per_prompt)
    written.completions = [completion for group in groups for completion in group]
    return written


def with_exemplars(
    given: Given, prompt: Prompt, after: Sequence[Message], written: Written
) -> tuple[list[Message], int]:
    """A prompt's conversation with its exemplars, the nearest last, and `after` it what follows; and how many exemplars
    those are: as many of the nearest as leave room for an answer."""
    system = [turn for turn in prompt.messages if turn["role"] in ("system", "developer")]
    asked = [turn for turn in prompt.messages if turn["role"] not in ("system", "developer")]
    found = list(given.exemplars.get(prompt.id, ()))
    while True:
        turns = [turn for exemplar in found for turn in exemplar.turns]
        messages = [*system, *turns, *asked, *after]
        if not found or given.fits(messages):
            break
        found = found[1:]
        written.counts["exemplars left out for length"] += 1
    if given.exemplars:
        written.counts["prompts with exemplars" if found else "prompts without exemplars"] += 1
    written.shown += [
        Shown(
            prompt_id=prompt.id,
            completion_id=exemplar.answer.completion_id,
            use="exemplar",
            similarity=exemplar.similarity,
        )
        for exemplar in found
    ]
    return messages, len(found)
