"""One lock for everything that one process at a time may do: a run, its watcher, making a model's files.

A lock is a file that names its owner and that the owner renews, `filelock.SoftFileLease`: it needs no `flock`, so it
holds on file systems that machines share. Who finds one

- of a process of this machine that is gone (by process id, its start time and the boot: a reused id is another process)
  takes it over at once;
- of another machine, another container, or a process that hangs, watches it: renewed within `LEASE` seconds of the
  watcher's own clock it is alive, else it is taken over. No clocks are compared, so none has to be right.

A Slurm job that was requeued, or cancelled and submitted again, follows its former self so, on any node.
A process that was suspended for longer may find its lock taken: it stops, before it puts anything in place (`check`).
What filelock does not do is added here: an empty file, as a full disk leaves it, does not lock for ever.
"""

from __future__ import annotations

import _thread
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_loop.errors import UserError

if TYPE_CHECKING:
    from filelock import OwnerRecord, SoftFileLease

HEARTBEAT = 2.0  # seconds between renewals: how long a refusal may take
LEASE = 30.0  # seconds without a renewal until a lock is taken over

_VARIABLE = "RLHF_LOOP_LOCKS"
"""Tells processes that are started under a lock which ones those are: JSON, [[file, token], ...]."""

_POLL = 0.1
_EMPTY = 2.0  # seconds that a file may be empty, as one that is being written is


class InUse(UserError):
    """Another process holds the lock."""

    def __init__(self, what: str, owner: str):
        super().__init__(f"{what} is in use by {owner}. Wait for it, or stop it")
        self.owner = owner


@contextmanager
def locked(file: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps all others out meanwhile, other threads of this process too. `what` names the thing in errors.

    Raises `InUse` when somebody who is alive holds the lock; `wait`: waits for them instead.
    """
    from filelock import SoftFileLease

    lock = SoftFileLease(file, lease_duration=LEASE, heartbeat_interval=HEARTBEAT, on_compromise=_interrupter())
    _acquire(lock, what, wait)
    held = [os.path.abspath(file), str(lock.token)]
    _tell([*_held(), held])
    try:
        yield
    except KeyboardInterrupt:
        if lock.compromise is not None:
            raise _lost(file) from None
        raise
    finally:
        _tell([one for one in _held() if one != held])
        lock.release()


def check(folder: Path) -> None:
    """Raises `UserError` when a lock on `folder` or one above it was taken from this process, or from the one that
    started it."""
    for name, token in _held():
        file = Path(name)
        if _inside(folder, file) and token not in _content(file):
            raise _lost(file)


def covers(folder: Path) -> bool:
    """Whether this process, or the one that started it, holds a lock on `folder` or one above it."""
    return any(_inside(folder, Path(name)) for name, _ in _held())


def _inside(folder: Path, lock: Path) -> bool:
    return os.path.abspath(folder).startswith(str(lock.parent) + os.sep)


def _acquire(lock: SoftFileLease, what: str, wait: bool) -> None:
    from filelock import Timeout

    file = Path(lock.lock_file)
    seen, since, told, named = None, time.monotonic(), False, False
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return
        owner, stamp, passed = lock.owner, _stamp(file), time.monotonic() - since
        if (earlier := _of_earlier_version(file)) is not None and not wait:
            raise InUse(what, earlier)
        alive = owner is not None and stamp is not None and (lock.is_lock_held_by_us or seen not in (None, stamp))
        if alive and owner is not None and not wait:
            raise InUse(what, _shown(owner))
        if stamp is not None:
            seen = stamp
        if owner is None and passed > _EMPTY:
            _spoil(file)
        if alive and not named and owner is not None and passed > 2 * HEARTBEAT:
            told = named = True
            _say(f"{what} is in use by {_shown(owner)}; waiting until it is done")
        if not told and passed > 3 * HEARTBEAT:
            told = True
            _say(f"{what} was locked and is not renewed; waiting up to {LEASE:.0f} seconds for a sign of life")
        time.sleep(_POLL)


def _shown(owner: OwnerRecord) -> str:
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _of_earlier_version(file: Path) -> str | None:
    """The living process of this machine that wrote a lock as JSON, as an earlier version did, which renews nothing."""
    try:
        owner = json.loads(_content(file))
        pid, host = int(owner["pid"]), owner["host"]
        os.kill(pid, 0)
    except (ValueError, TypeError, KeyError, OverflowError, ProcessLookupError):
        return None
    except PermissionError:
        pass
    return f"process {pid} on {host}" if host == socket.gethostname() else None


def _interrupter() -> Callable[[object], None] | None:
    """What the thread that renews does when the lock was taken: interrupts the work under it where that is possible."""
    if threading.current_thread() is threading.main_thread():
        return lambda compromise: _thread.interrupt_main()
    return None


def _lost(file: Path) -> UserError:
    if not file.parent.exists():
        return UserError(f"{file.parent} is gone; was it moved? Type the same command again with its new place")
    return UserError(
        f"the lock {file} was taken over, for it was not renewed for {LEASE:.0f} seconds (was this process suspended, "
        "or its disk away?). It has stopped; what was complete is kept, and who holds the lock now goes on from there"
    )


def _stamp(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _content(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(errors="replace")
    return ""


def _spoil(file: Path) -> None:
    """Makes an empty lock a damaged one, which filelock takes over when it stays so."""
    with suppress(OSError), file.open("ab") as opened:
        if opened.tell() == 0:
            opened.write(b"?")


def _held() -> list[list[str]]:
    found: list[list[str]] = json.loads(os.environ.get(_VARIABLE, "[]"))
    return found


def _tell(held: list[list[str]]) -> None:
    os.environ[_VARIABLE] = json.dumps(held)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
