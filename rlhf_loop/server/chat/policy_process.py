"""A policy of our own that answers, in a process of its own, so that the service stays light and may replace it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from rlhf_loop.processes import LastLines
from rlhf_loop.server.chat.engine import Ask, Delta, Event, PolicyLost, PolicyRefused, Started

KILL_SECONDS = 5.0
"""How long a killed process is waited for."""

MOST_TOKENS = 32768
"""In an answer of a policy of our own, whatever a request allows."""


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
