"""What the service asks of whatever answers, a process of our own or a server elsewhere, and what it hears."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlhf_loop.records import Message


class PolicyLost(Exception):
    """The policy went away while it wrote an answer, or there is none now."""


class PolicyRefused(Exception):
    """The policy will not answer this request; the text says why. The other values are as OpenAI's API has them."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        error_type: str = "invalid_request_error",
        retry_after: str | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.error_type, self.retry_after = status, param, error_type, retry_after


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a policy is asked to write."""

    messages: tuple[Message, ...]
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    round: int
    key: str  # with seed and round: what random numbers depend on
    stream: bool = True  # whether whoever asked reads it bit by bit
    more: dict[str, Any] = field(default_factory=dict)  # fields of OpenAI's API beyond these, for a server that knows


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A bit of an answer, or its end."""

    choice: int
    text: str = ""
    finish: Literal["stop", "length"] | None = None
    tokens: int = 0  # of the whole answer, at its end
    raw: dict[str, Any] | None = None  # what another server said: a choice of OpenAI's API, as it came
    token_ids: tuple[int, ...] | None = None  # of the whole answer, where they are known


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The conversation was read, by this policy."""

    policy_id: str
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Noted:
    """What another server says of the whole answer, such as `usage`."""

    fields: dict[str, Any]


Event = Delta | Started | Noted


class Engine(Protocol):
    """Something that answers: a process of our own (`policy_process.py`), or a server elsewhere (`upstream.py`)."""

    policy_id: str  # that it was made for
    alive: bool
    answering: int  # answers that are being written now

    async def start(self) -> None:
        """Returns when it can answer; raises `PolicyLost` when it cannot be brought to. `close` ends it either way."""

    def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer bit by bit. Raises `PolicyLost` and `PolicyRefused`."""

    async def close(self) -> None:
        """Ends it, at once."""
