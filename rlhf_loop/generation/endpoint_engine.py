"""Candidates that a model behind a server writes, in the place of the policy.

They have no token ids: nothing knows which tokens they were to that model, so whoever learns from them or scores them
reads them in the policy's own tokens, as imported answers are (`Completion.by_policy`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_loop.endpoints.answers import Reply
from rlhf_loop.endpoints.asks import Ask, Unanswered, Unreadable
from rlhf_loop.endpoints.client import Client
from rlhf_loop.errors import UserError
from rlhf_loop.generation.transformers_engine import Answer
from rlhf_loop.progress import Count
from rlhf_loop.recipe import Generation
from rlhf_loop.records import Message, stable_id

logger = logging.getLogger(__name__)


def sample(
    model: Client,
    tokenizer: None,
    conversations: Sequence[Sequence[Message]],
    keys: Sequence[tuple[int, int, str]],
    settings: Generation,
    progress: Count | None = None,
) -> list[list[Answer]]:
    """Up to `settings.samples_per_prompt` answers to each conversation; fewer, with a warning that counts why, where
    the server gives none. `model`: who asks it. The key (seed, round, prompt id) and the sample make the seed that the
    server is sent. Raises `UserError` where it answers nothing at all."""
    count = settings.samples_per_prompt
    asks = [
        Ask(
            messages=tuple(conversation),
            about=(key[2],),
            sample=number,
            fields=_fields(settings, int(stable_id("writer", *key, number)[:7], 16)),
        )
        for conversation, key in zip(conversations, keys, strict=True)
        for number in range(count)
    ]
    said = model.ask(asks, _read, progress)
    reasons = Counter(one.reason for one in said if isinstance(one, Unanswered))
    if reasons:
        told = "; ".join(f"{number}: {reason}" for reason, number in reasons.items())
        if sum(reasons.values()) == len(said):
            raise UserError(f"endpoints.{model.name}: none of {len(said)} answers was written ({told})")
        missing = sum(reasons.values())
        logger.warning("endpoint %s did not write %d of %d answers (%s)", model.name, missing, len(said), told)
    return [
        [one for one in said[place : place + count] if not isinstance(one, Unanswered)]
        for place in range(0, len(said), count)
    ]


def _fields(settings: Generation, seed: int) -> dict[str, Any]:
    fields = {"temperature": settings.temperature, "max_tokens": settings.max_new_tokens, "seed": seed}
    if settings.top_p < 1:
        fields["top_p"] = settings.top_p
    if settings.top_k:
        fields["top_k"] = settings.top_k
    return fields


def _read(reply: Reply) -> Answer:
    text = reply.text
    if not text.strip() or text.lstrip().startswith("<think>"):
        raise Unreadable("the answer is empty, or was cut off within its thoughts")
    ended = reply.finish_reason != "length"
    return Answer(text=text, finish_reason="stop" if ended else "length", ids=None, written=reply.completion_tokens)
