"""The policy behind the service, replaced without a gap when another policy is promoted.

The new policy's engine is started beside the old one; new answers come from it as soon as it is ready, and the old
one ends when its last answer is written. Both are in memory meanwhile. One that dies is started again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from rlhf_loop.records import Artifact
from rlhf_loop.server.chat.engine import Engine, PolicyLost

logger = logging.getLogger("rlhf_loop.server")

POLL_SECONDS = 2.0
"""How often the store is asked which policy is promoted."""

WAIT_SECONDS = 30.0
"""How long a chat waits for a policy that is starting before it is told to come again."""

BACK_OFF = (0.5, 2.0, 10.0, 60.0)
"""Seconds before a process that failed is started again, and again."""


@dataclass
class Policies:
    """The policy that answers now, and the one that takes over."""

    promoted: Callable[[], Awaitable[Artifact | None]]
    make: Callable[[Artifact], Engine]
    poll_seconds: float = POLL_SECONDS
    wait_seconds: float = WAIT_SECONDS
    back_off: Sequence[float] = BACK_OFF
    current: Engine | None = None
    restarts: int = 0  # of policies that failed
    problem: str | None = None  # why the promoted policy does not run, where it does not
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _draining: set[asyncio.Task[None]] = field(default_factory=set)
    _watcher: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a policy can answer now."""
        return self.current is not None and self.current.alive

    def begin(self) -> None:
        """Starts the promoted policy and follows promotions, from within a running event loop."""
        self._watcher = asyncio.create_task(self._watch())

    @asynccontextmanager
    async def reserved(self) -> AsyncIterator[Engine]:
        """The policy for a new answer, kept until that is written; waits a while for one that is starting.

        Raises `PolicyLost` where none comes.
        """
        try:
            async with asyncio.timeout(self.wait_seconds), self._changed:
                await self._changed.wait_for(lambda: self.ready)
        except TimeoutError:
            raise PolicyLost(self.problem or "the policy is still being started") from None
        engine = self.current
        assert engine is not None
        engine.answering += 1
        try:
            yield engine
        finally:
            engine.answering -= 1

    async def close(self, seconds: float = 5.0) -> None:
        """Lets the answers that are being written end, for so many seconds, then ends all processes."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if self.current is not None:
            self._drain(self.current)
            self.current = None
        if self._draining:
            await asyncio.wait(self._draining, timeout=seconds)
        for task in self._draining:  # of a process that hangs, or an answer too long to wait for
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)

    async def _watch(self) -> None:
        """Keeps the promoted policy running."""
        failures = 0
        while True:
            pause = self.poll_seconds
            try:
                failures = 0 if await self._follow() else failures
            except Exception as error:  # whatever it was: the policy that answers goes on doing so
                new = str(error) != self.problem
                self.problem = str(error)
                self.restarts += 1
                pause = max(pause, self.back_off[min(failures, len(self.back_off) - 1)])
                failures += 1
                if new or failures & (failures - 1) == 0:  # the same again: the 2nd, 4th, 8th, ... time
                    fields = {"reason": str(error), "attempt": failures}
                    logger.error("the policy does not start", extra={"fields": fields})
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Waits, but not while the policy that should answer is dead."""
        alive = self.ready
        for _ in range(max(1, round(seconds / 0.05))):
            await asyncio.sleep(min(0.05, seconds))
            if alive and not self.ready:
                return

    async def _follow(self) -> bool:
        """Starts the promoted policy where it is not what answers; True when something was started."""
        wanted = await self.promoted()
        if wanted is None or (self.ready and self.current is not None and self.current.policy_id == wanted.id):
            return False
        died = self.current is not None and not self.current.alive
        engine = self.make(wanted)
        try:
            await engine.start()
        except BaseException:
            await engine.close()
            raise
        self.restarts += died
        logger.info("policy ready", extra={"fields": {"policy": wanted.id, "again": died}})
        async with self._changed:
            old, self.current, self.problem = self.current, engine, None
            self._changed.notify_all()
        if old is not None:
            self._drain(old)
        return True

    def _drain(self, engine: Engine) -> None:
        async def drain() -> None:
            try:
                while engine.answering:
                    await asyncio.sleep(0.02)
            finally:
                await engine.close()

        task = asyncio.create_task(drain())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
