"""What is asked of an endpoint, and what becomes of it: an answer, or a reason why there is none."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_loop.endpoints.answers import Reply
from rlhf_loop.files import fingerprint
from rlhf_loop.records import Message, sound


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One question. Equal ones are asked once; `sample` tells draws of the same question apart."""

    messages: tuple[Message, ...]
    about: tuple[str, ...] = ()  # ids of the prompts and completions that it speaks of, for deletions
    sample: int = 0
    schema: Mapping[str, Any] | None = None  # of the JSON that is wanted
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the request, over those of the settings
    optional: Mapping[str, Any] = field(default_factory=dict)  # further ones, left out where the server refuses them


@dataclass(frozen=True, kw_only=True, slots=True)
class Unanswered:
    """What stands for a question that got no answer that could be used."""

    reason: str  # the same for all that failed in the same way, to be counted


class Unreadable(ValueError):
    """A reply is not of the wanted form."""


def mean(draws: Sequence[float | Unanswered]) -> float | Unanswered:
    """Of the draws of one question that were answered; the first reason where none was."""
    numbers = [one for one in draws if not isinstance(one, Unanswered)]
    return math.fsum(numbers) / len(numbers) if numbers else draws[0]


def key_of(ask: Ask, identity: Mapping[str, Any]) -> str:
    """A hash of all that the answer depends on; `identity`: of the endpoint."""
    return fingerprint(identity, [messages_of(ask), ask.sample, ask.schema, ask.fields, ask.optional])


def messages_of(ask: Ask) -> list[dict[str, str]]:
    """The conversation as it is sent."""
    return [{"role": message["role"], "content": sound(message["content"])} for message in ask.messages]


def parsed(body: Any) -> Reply:
    """The first choice of a chat completion; raises what Python raises where it is none.

    Without the thoughts that some models begin with: they repeat what was asked, and nobody needs them kept."""
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("an answer without text")
    usage = body.get("usage") or {}
    logprobs = (choice.get("logprobs") or {}).get("content") or []
    top = [[(one["token"], float(one["logprob"])) for one in token.get("top_logprobs") or []] for token in logprobs]
    return Reply(
        text=sound(re.sub(r"\A\s*<think>.*?</think>\s*", "", text, flags=re.DOTALL)),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=_whole(usage.get("prompt_tokens")),
        completion_tokens=_whole(usage.get("completion_tokens")),
        created_at=round(time.time(), 3),
        top_logprobs=tuple(map(tuple, top)),
    )


def reason_of(error: Exception, status: int | None) -> str:
    """Why a request failed, in words that are the same for all that failed so; `status`: of HTTP."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "no answer came in time"
    if isinstance(error, openai.APIConnectionError):
        return "the connection broke"
    if status is not None:
        return f"the server failed (HTTP {status})" if status >= 500 else f"the server refused it (HTTP {status})"
    return "what the server sent is no chat completion"


def _whole(value: object) -> int | None:
    """A number of tokens that can be true; what a server says beside it is not counted."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < _MOST_TOKENS else None


_MOST_TOKENS = 2**40
