"""Child processes: heard line by line, whatever bytes they print, and ended with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

STOP_SECONDS = 10.0  # that a child is given to end by itself


class LastLines:
    """The last lines that a child said."""

    def __init__(self, count: int = 30):
        self._lines: deque[str] = deque(maxlen=count)

    def add(self, line: str | bytes) -> None:
        """Bytes that are no UTF-8 become U+FFFD."""
        text = line.decode(errors="replace") if isinstance(line, bytes) else line
        self._lines.append(text.rstrip())

    @property
    def error(self) -> str | None:
        """What the last line that begins with `error: ` says."""
        errors = [line for line in self._lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else None

    @property
    def last(self) -> str | None:
        """The last line that is not empty."""
        return next((line.strip() for line in reversed(self._lines) if line.strip()), None)

    def __str__(self) -> str:
        return "\n".join(self._lines)


def how_ended(code: int) -> str:
    """What an exit code other than 0 says, to follow "its process"."""
    if code >= 0:
        return f"ended with exit code {code}"
    killed = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code}{killed}"


def run(
    command: Sequence[str],
    hear: Callable[[str], None],
    stop_seconds: float = STOP_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs a command in a session of its own and gives its exit code; `hear` gets each line of its output and errors.
    `environment`: variables beside those of this process.

    Whatever ends the waiting (Ctrl-C, an error of `hear`) ends the child and all that it started, within
    `stop_seconds`.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            hear(line.rstrip("\n"))
        return process.wait()
    except BaseException:
        stop(process, stop_seconds)
        raise
    finally:
        process.stdout.close()


def stop(process: subprocess.Popen[Any], seconds: float = STOP_SECONDS) -> None:
    """SIGTERM to the child's group, then SIGKILL to what is left of it after so many seconds, and to processes that its
    children started in sessions of their own, as launchers do with ranks. A second Ctrl-C kills at once."""
    import psutil

    started: list[psutil.Process] = []
    with suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
    try:
        _to_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
    finally:
        _to_group(process.pid, signal.SIGKILL)
        for one in started:
            with suppress(psutil.Error):
                one.kill()  # psutil tells a reused id
        with suppress(subprocess.TimeoutExpired):  # one that a driver holds cannot even be killed
            process.wait(timeout=5)
        psutil.wait_procs(started, timeout=5)


def _to_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which service managers and Slurm send, is a `KeyboardInterrupt` meanwhile, as Ctrl-C is. Only the first:
    Slurm and torchrun may both send one to a rank, and it shall end what it began."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
