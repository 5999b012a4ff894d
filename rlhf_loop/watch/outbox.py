"""Events on their way: kept in a file of the run until they have arrived, sent by a thread of its own.

`RUN/watch.json` is all that a watcher remembers: what is still to be told, how far it has told, and the last failure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.watch.events import DeliveryError, Event, call, post

COMMAND = "command"
"""The target that stands for the recipe's command; the others are URLs."""

ATTEMPTS = 30  # then an event is given up: with the delays below, after about 20 hours
LONGEST = 3600.0  # seconds between two attempts


@dataclass
class Pending:
    """An event that one target has not got yet."""

    event: Event
    target: str
    attempts: int = 0
    due: float = 0.0  # seconds since the epoch


@dataclass
class Memory:
    """What `RUN/watch.json` holds."""

    told: int | None = None  # the last round whose outcome was told; None: nobody watched before
    waiting_after: int | None = None  # the round after which waiting was told
    failure: dict[str, Any] | None = None  # of the next round: round, times, at, error
    pending: list[Pending] = field(default_factory=list)


class Outbox:
    """Remembers and delivers. All changes go through `change`, which writes the file before anything else happens."""

    def __init__(
        self,
        file: Path,
        targets: list[str],
        *,
        secret: str = "",
        command: str | None = None,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.time,
        first_delay: float = 1.0,
    ):
        """`targets`: URLs, and `COMMAND` where `command` is given; what waits for others is dropped. `first_delay`:
        seconds before the second attempt; each further one takes twice as long, up to `LONGEST`."""
        self.file, self.targets, self.secret, self.command = file, targets, secret, command
        self.say, self.clock, self.first_delay = say, clock, first_delay
        self.memory = _read(file)
        self.memory.pending = [one for one in self.memory.pending if one.target in targets]
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._stopping = False
        self._thread: threading.Thread | None = None

    def change(self, *events: Event, **values: Any) -> None:
        """Sets fields of the memory and adds events to what is to be told, in one write of the file."""
        with self._wake:
            for name, value in values.items():
                setattr(self.memory, name, value)
            self.memory.pending += [Pending(event, target) for event in events for target in self.targets]
            self._write()
            self._wake.notify_all()

    def start(self) -> None:
        """Begins to deliver beside everything else."""
        self._thread = threading.Thread(target=self._deliver, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread; first gives what has not been tried yet up to `seconds`. The rest waits in the file."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                if not any(one.attempts == 0 for one in self.memory.pending):
                    break
            time.sleep(0.02)
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=max(0.1, deadline - time.monotonic()))

    def deliver_due(self) -> None:
        """Tries everything that is due, once."""
        with self._lock:
            due = [one for one in self.memory.pending if self._wait(one) <= 0]
        for one in due:
            if not self._stopping:
                self._try(one)

    def _try(self, one: Pending) -> None:
        error: str | None = None
        try:
            if one.target != COMMAND:
                post(one.target, one.event, self.secret)
            elif self.command is not None:
                call(self.command, one.event)
        except DeliveryError as failed:
            error = str(failed)
        with self._lock:
            one.attempts += 1
            if error is not None and one.attempts < ATTEMPTS:
                one.due = self.clock() + min(LONGEST, self.first_delay * 2 ** (one.attempts - 1))
                if one.attempts == 1:
                    self.say(f"{one.target} did not take `{one.event.kind}`: {error}; it is tried again")
            else:
                if error is not None:
                    self.say(
                        f"{one.target} never took `{one.event.kind}` of round {one.event.round}, given up: {error}"
                    )
                self.memory.pending.remove(one)
            try:
                self._write()
            except UserError as failed:  # a full disk; what arrived is sent again after a restart
                self.say(f"{failed} (events are still sent)")

    def _wait(self, one: Pending) -> float:
        """Seconds until an event is due; none where the clock was set back since."""
        wait = one.due - self.clock()
        return wait if wait <= LONGEST else 0.0

    def _deliver(self) -> None:
        while True:
            with self._wake:
                if self._stopping:
                    return
                wait = min((self._wait(one) for one in self.memory.pending), default=None)
                if wait is None or wait > 0:
                    self._wake.wait(timeout=wait)
                    continue
            self.deliver_due()

    def _write(self) -> None:
        write_json(self.file, asdict(self.memory))


def _read(file: Path) -> Memory:
    if not file.exists():
        return Memory()
    with reading(file):
        values = read_json(file)
        pending = [Pending(**{**one, "event": Event(**one["event"])}) for one in values.pop("pending")]
        return Memory(**values, pending=pending)
