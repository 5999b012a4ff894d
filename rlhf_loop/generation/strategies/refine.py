"""The policy revises an earlier answer by its critique (Madaan et al. 2023, arXiv 2303.17651; Scheurer et al. 2023,
arXiv 2303.16755).

A revision counts as an answer to the prompt: what trains on it reads the prompt as it was asked, not the conversation
that the revision was written in. So it is not a sample of the policy's answers to that prompt.
"""

from __future__ import annotations

import re

from rlhf_loop.generation import Asked
from rlhf_loop.generation.strategies.exemplars import with_exemplars
from rlhf_loop.generation.strategies.given import Given, Shown, Written
from rlhf_loop.ngrams import alike
from rlhf_loop.records import Message, Recalled
from rlhf_loop.strategies import Refine

BY_CRITIQUE = "{critique}\n\nRewrite your answer so that this no longer holds. Reply with the new answer alone."
WITHOUT = "Write a better answer to what I asked. Reply with the new answer alone."


def write(given: Given) -> Written:
    """`samples_per_prompt` answers to each prompt: a share of them revisions where there is an answer to revise."""
    samples = given.settings.samples_per_prompt
    revised = max(1, round(given.settings.refine.share * samples))
    written = Written(completions=[])
    whole, part, revisions = [], [], []
    for prompt in given.prompts:
        plain, shown = with_exemplars(given, prompt, [], written)
        asked = Asked(prompt=prompt, messages=tuple(plain) if shown else None, note=_note("exemplars", shown))
        earlier = given.earlier.get(prompt.id)
        if earlier is None:
            written.counts["prompts without an answer to revise"] += 1
            whole.append(asked)
            continue
        counted = Written(completions=[])  # the exemplars are those of above, and are not counted again
        messages, also_shown = with_exemplars(given, prompt, _request(earlier, given.settings.refine), counted)
        if not given.fits(messages):
            written.counts["prompts whose revision leaves no room"] += 1
            whole.append(asked)
            continue
        part.append(asked)
        written.shown.append(Shown(prompt_id=prompt.id, completion_id=earlier.completion_id, use="to revise"))
        revisions.append(
            Asked(
                prompt=prompt,
                messages=tuple(messages),
                draws="revision",
                first_sample=samples - revised,
                parent=earlier.completion_id,
                critique=earlier.critique if given.settings.refine.critiques else None,
                note=_note("refine", also_shown),
            )
        )
    groups = [*given.sample(whole, samples), *(given.sample(part, samples - revised) if revised < samples else [])]
    kept = [completion for group in groups for completion in group]
    for group in given.sample(revisions, revised):
        for completion in group:
            earlier = given.earlier[completion.prompt_id]
            written.counts["revisions"] += 1
            written.counts["revisions by a critique"] += completion.critique is not None
            reason = why_not(completion.text, earlier, given.settings.refine)
            if reason is None:
                kept.append(completion)
                written.counts["revisions kept"] += 1
            else:
                written.set_aside.append((completion, reason))
    place = {prompt.id: number for number, prompt in enumerate(given.prompts)}
    written.completions = sorted(kept, key=lambda completion: (place[completion.prompt_id], completion.sample))
    return written


def why_not(revision: str, earlier: Recalled, settings: Refine) -> str | None:
    """Why a text is no revision of `earlier`; None where it is one.

    A copy, in all but some words, of what it revises, or of what that revises in turn: revisions so never go round in
    a circle. A refusal, where the answer that it revises is none.
    """
    if not revision.strip():
        return "empty"
    if alike(revision, earlier.text) >= settings.copy_above:
        return "copy"
    if any(alike(revision, text) >= settings.copy_above for text in earlier.before):
        return "back to an earlier answer"
    if refuses(revision) and not refuses(earlier.text):
        return "refusal"
    return None


def refuses(text: str) -> bool:
    """Whether a text begins as a refusal does."""
    return _REFUSAL.match(text.strip().lower().replace("’", "'")) is not None


_REFUSAL = re.compile(
    r"(?:(?:i'm |i am )?(?:very |so |really )?sorry\b[^.!?]{0,40}\b(?:can't|cannot|can not|unable|not able|won't)"
    r"|i (?:can't|cannot|can not|won't|will not|am unable|am not able)\b|i'm (?:unable|not able)\b"
    r"|(?:unfortunately,? )?(?:as|i am|i'm) an ai\b|unfortunately,? i (?:can't|cannot|am))"
)


def _request(earlier: Recalled, settings: Refine) -> list[Message]:
    """The earlier answer as the policy's turn, and what it is asked to do with it."""
    critique = earlier.critique if settings.critiques else None
    wanted = WITHOUT if critique is None else BY_CRITIQUE.format(critique=critique.strip())
    return [Message(role="assistant", content=earlier.text), Message(role="user", content=wanted)]


def _note(strategy: str, exemplars: int) -> dict[str, object]:
    """What a completion's `sampling` says beside the settings."""
    if strategy == "exemplars" and not exemplars:
        return {}
    return {"strategy": strategy, **({"exemplars": exemplars} if exemplars else {})}
