"""One push at a time to a place that knows no locks, such as a bucket: a file there names who pushes, who renews it.

Who finds one watches it: renewed, or gone, within `LEASE` seconds of the watcher's own clock, its owner is alive; else
it is taken over. A push that was suspended for longer notices before it writes the index. What this does not protect
against: two pushes that begin in one moment, on file systems that cannot make a file only where there is none.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from rlhf_loop.errors import UserError, printable

NAME = "rlhf_loop_push.lock"
HEARTBEAT = 15.0  # seconds between renewals
LEASE = 60.0  # seconds without a renewal until it is taken over


class Turn:
    """The file `path` of a file system of fsspec, held from entering to leaving. `place`: for messages."""

    def __init__(self, system: Any, path: str, place: str):
        self.system, self.path, self.place = system, path, place
        self.owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._token, self._beat, self._over = os.urandom(8).hex(), 0, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="push", daemon=True)

    def __enter__(self) -> Turn:
        while not self._make():
            self._wait()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(Exception):  # a file that stays is taken over by the next push
            if self._is_ours(self._read()):
                self.system.rm_file(self.path)

    def check(self) -> None:
        """Raises `UserError` where somebody else took it over."""
        if not self._is_ours(found := self._read()):
            raise UserError(
                f"{self.place} was taken over by a push of {_owner(found)}, for this one gave no sign of life for "
                f"{LEASE:.0f} seconds. Type the same command again when that one is done"
            )

    def _make(self) -> bool:
        try:
            self.system.pipe_file(self.path, self._content(), mode="create")
        except FileExistsError:
            return False
        return self._is_ours(self._read())

    def _wait(self) -> None:
        """Until the file of another one is gone, or may be taken over; raises `UserError` when that one is alive."""
        seen, end = self._read(), time.monotonic() + LEASE
        if seen is None:
            return
        print(f"{self.place} is held by a push of {_owner(seen)}; waiting up to {LEASE:.0f} seconds for a sign of life",
              file=sys.stderr, flush=True)  # fmt: skip
        while (now := self._read()) == seen:
            if time.monotonic() > end:
                with suppress(FileNotFoundError):  # another one that waited was first
                    self.system.rm_file(self.path)
                return
            time.sleep(min(1.0, LEASE / 10))
        if now is not None:
            raise UserError(f"{self.place} is being pushed to by {_owner(now)}. Wait for it, or stop it")

    def _renew(self) -> None:
        while not self._over.wait(HEARTBEAT):
            try:
                if not self._is_ours(self._read()):
                    return
                self._beat += 1
                self.system.pipe_file(self.path, self._content())
            except Exception:  # the place does not answer for a moment: the push itself tells when it stays so
                continue

    def _content(self) -> bytes:
        return json.dumps({"by": self.owner, "token": self._token, "beat": self._beat}).encode()

    def _read(self) -> bytes | None:
        try:
            found: bytes = self.system.cat_file(self.path)
        except FileNotFoundError:
            return None
        return found

    def _is_ours(self, content: bytes | None) -> bool:
        return content is not None and self._token.encode() in content


def _owner(content: bytes | None) -> str:
    try:
        return printable(str(json.loads(content or b"")["by"])[:100])
    except (ValueError, KeyError, TypeError):
        return "somebody"
