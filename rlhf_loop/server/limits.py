"""How much one caller may ask for: requests a second, and bytes in a request."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RATES = {"app": (500.0, 1000), "annotator": (20.0, 200), "admin": (500.0, 1000), "unknown": (1.0, 30)}
"""Requests a second, and how many may come at once, by role. `unknown`: failed logins and tokens, by address."""

BODY_BYTES = 1 << 20
BULK_BYTES = 8 << 20
"""Of one request's body: bulk feedback may be longer."""

BODY_SECONDS = 60.0
"""How long a client may send nothing in the middle of a body."""

_KEPT = 10_000  # callers remembered; the longest unseen ones are forgotten, and begin with a full bucket


@dataclass
class Limits:
    """A bucket of requests for each caller, refilled at a steady rate (Turner 1986, "token bucket").

    In memory: a restart fills all buckets.
    """

    rates: dict[str, tuple[float, int]] = field(default_factory=lambda: dict(RATES))
    body_bytes: int = BODY_BYTES
    bulk_bytes: int = BULK_BYTES
    body_seconds: float = BODY_SECONDS

    def __post_init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (left, when)
        self._lock = threading.Lock()

    def take(self, key: str, kind: str, count: int = 1) -> float:
        """Takes `count` (0 or 1) of this caller's requests; 0 when one was left, else seconds until there is one."""
        rate, burst = self.rates[kind]
        now = time.monotonic()
        with self._lock:
            left, when = self._buckets.pop(key, (float(burst), now))
            left = min(float(burst), left + (now - when) * rate)
            wait = 0.0 if left >= 1 else (1 - left) / rate
            self._buckets[key] = (left - count if wait == 0 else left, now)
            if len(self._buckets) > _KEPT:
                self._buckets.popitem(last=False)
        return wait

    def check(self, key: str, kind: str, take: bool = True) -> None:
        """The same, but answers 429 with `Retry-After` where none is left; `take=False` only looks."""
        if wait := self.take(key, kind, count=int(take)):
            raise HTTPException(429, "too many requests; wait and try again", {"Retry-After": str(math.ceil(wait))})


class BodyLimit:
    """Refuses bodies that are too long with 413, before they are read where they say how long they are, and those that
    stop on their way with 408."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.limits.bulk_bytes if scope["path"].endswith("/bulk") else self.limits.body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        read, whole = 0, False

        async def limited() -> Message:
            nonlocal read, whole
            if not declared.isdigit() or int(declared) > most:
                raise _too_large(most)
            try:  # once the body is whole, what comes is that the client has gone
                async with asyncio.timeout(None if whole else self.limits.body_seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, "the body stopped on its way; send it again", {"Connection": "close"}
                ) from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > most:
                raise _too_large(most)
            return message

        await self.app(scope, limited, send)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body is longer than {most} bytes; send less at once", {"Connection": "close"})
