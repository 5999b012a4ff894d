"""What a question may take of an endpoint's budget of tokens, held while it is on its way.

So requests never take more than the budget, however many are sent at a time: each is sent when there is room for the
most that it can take, and gives back what it did not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from rlhf_loop.endpoints.answers import Answers
from rlhf_loop.endpoints.settings import EndpointSettings

LOOK_AGAIN = 0.05
"""Seconds until a question looks again whether others have given back enough."""

LONGEST_PAUSE = 120.0
"""Seconds between two tries of a request, at most (`Retry-After`)."""


class NoRoom(Exception):
    """There is no room for a question of so many tokens, and nothing is held that could be given back."""

    def __init__(self, tokens: int):
        self.tokens = tokens


def most_tokens(body: Mapping[str, Any], of_an_answer: int) -> int:
    """The most tokens that a request can read and write: a token is a byte of the request or more, and the names of its
    fields stand for what a chat template adds. `of_an_answer`: where the request itself sets no limit."""
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    return len(json.dumps(body, ensure_ascii=False).encode()) + int(max(limits, default=of_an_answer))


@asynccontextmanager
async def held(
    answers: Answers, name: str, settings: EndpointSettings, tokens: int, give_up: Callable[[], None]
) -> AsyncIterator[None]:
    """Waits until there is room for `tokens` of an endpoint's budget and holds them. `give_up` is called before each
    wait, to raise what ends it. Raises `NoRoom` where there will be none."""
    if settings.max_total_tokens is None:
        yield
        return
    tries = settings.max_retries + 1
    longest = 2 * tries * (settings.timeout + LONGEST_PAUSE)  # twice: once more without fields that a server refuses
    while isinstance(number := answers.hold(name, tokens, settings.max_total_tokens, longest), str):
        if number == "spent":
            raise NoRoom(tokens)
        give_up()
        await asyncio.sleep(LOOK_AGAIN)
    try:
        yield
    finally:
        answers.let_go(number)
