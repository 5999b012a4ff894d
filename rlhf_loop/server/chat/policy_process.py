"""The policy behind the service: a process of our own, replaced without a gap when another policy is promoted.

The new policy's process is started beside the old one; new answers come from it as soon as it is ready, and the old
one ends when its last answer is written. Both are in memory meanwhile. A process that dies is started again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlhf_loop.processes import LastLines
from rlhf_loop.records import Artifact, Message

logger = logging.getLogger("rlhf_loop.server")

POLL_SECONDS = 2.0
"""How often the store is asked which policy is promoted."""

WAIT_SECONDS = 30.0
"""How long a chat waits for a policy that is starting before it is told to come again."""

KILL_SECONDS = 5.0
"""How long a killed process is waited for."""

MOST_TOKENS = 32768
"""In an answer of a policy of our own, whatever a request allows."""

BACK_OFF = (0.5, 2.0, 10.0, 60.0)
"""Seconds before a process that failed is started again, and again."""


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
    """Something that answers: a process of our own, or a server elsewhere (`upstream.py`)."""

    policy_id: str  # that it was made for
    alive: bool
    answering: int  # answers that are being written now

    async def start(self) -> None:
        """Returns when it can answer; raises `PolicyLost` when it cannot be brought to. `close` ends it either way."""

    def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer bit by bit. Raises `PolicyLost` and `PolicyRefused`."""

    async def close(self) -> None:
        """Ends it, at once."""


class OwnProcess:
    """A policy on the transformers engine, in a process of its own (`rlhf_loop.generation.worker`)."""

    def __init__(self, policy_id: str, weights: str, settings: dict[str, Any], batch_tokens: int):
        self.policy_id = policy_id
        self.alive = False
        self.answering = 0
        self._start = {"policy": weights, "settings": settings, "batch_tokens": batch_tokens}
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._inboxes: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._number = 0
        self._last = LastLines()  # of its log

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the process and waits until the weights are loaded."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rlhf_loop.generation.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
            start_new_session=True,  # Ctrl-C is for the server, which lets answers end first
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        log = asyncio.create_task(self._keep_log())
        self._readers = [log]
        self._write(self._start)
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await log
            raise PolicyLost(f"policy {self.policy_id} cannot be started: {self._why()}")
        self.alive = True
        self._readers.append(asyncio.create_task(self._read()))

    async def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer bit by bit."""
        if not self.alive:
            raise PolicyLost(f"policy {self.policy_id} is not running")
        self._number += 1
        id = f"r{self._number}"
        inbox = self._inboxes[id] = asyncio.Queue()
        left = ask.n
        try:
            values = {name: getattr(ask, name) for name in Ask.__slots__ if name not in ("stream", "more")}
            self._write({"id": id, **values, "max_tokens": min(ask.max_tokens, MOST_TOKENS)})
            while left:
                message = await inbox.get()
                if message is None:
                    raise PolicyLost(f"policy {self.policy_id} ended while it wrote: {self._why()}")
                if "error" in message:
                    left = 0
                    raise PolicyRefused(message["error"])
                if "prompt_tokens" in message:
                    yield Started(policy_id=self.policy_id, prompt_tokens=message["prompt_tokens"])
                elif "finish" in message:
                    left -= 1
                    ids = message["token_ids"]
                    yield Delta(
                        choice=message["choice"],
                        finish=message["finish"],
                        tokens=message["tokens"],
                        token_ids=None if ids is None else tuple(ids),
                    )
                else:
                    yield Delta(choice=message["choice"], text=message["text"])
        finally:
            del self._inboxes[id]
            if left and self.alive:
                self._write({"cancel": id})

    async def close(self) -> None:
        """Ends the process, whatever it is doing; answers that it still owes are lost."""
        self.alive = False
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            with suppress(TimeoutError):  # one that a driver holds cannot even be killed
                await asyncio.wait_for(self._process.wait(), KILL_SECONDS)
        for inbox in self._inboxes.values():
            inbox.put_nowait(None)
        for reader in self._readers:
            if reader is not asyncio.current_task():
                reader.cancel()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if (inbox := self._inboxes.get(message["id"])) is not None:
                inbox.put_nowait(message)
        self.alive = False
        await self._process.wait()
        for inbox in self._inboxes.values():
            inbox.put_nowait(None)

    async def _keep_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._last.add(line)

    def _why(self) -> str:
        code = self._process.returncode if self._process is not None else None
        return self._last.error or self._last.last or f"exit code {code}"


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
