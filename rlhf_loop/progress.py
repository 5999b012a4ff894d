"""What a user sees while a run works: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what to show)."""

Count = Callable[[int, int], None]
"""Called with (done, total)."""


def silent(done: int, total: int, text: str) -> None:
    """A `Progress` that shows nothing."""


def counting(progress: Progress, text: str) -> Count:
    """Counts that a step's progress shows with `text` beside them."""
    return lambda done, total: progress(done, total, text)


_HEAD = " · policy "


def is_head(line: str, number: int) -> bool:
    """Whether `RunProgress.round` says with this line that round `number` has begun."""
    return _HEAD in line and re.match(rf"round {number}\b", line) is not None


class RunProgress:
    """Shows rounds and steps; `quiet` shows nothing."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        from rich.console import Console

        self.console = console or Console(stderr=False, highlight=False, quiet=quiet)
        self.live = self.console.is_terminal and not quiet

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()

    def round(self, number: int, total: int, policy: str) -> None:
        """The head of a round."""
        title = "round 0: first candidates" if number == 0 else f"round {number} of {total}"
        self.say(f"\n{title}{_HEAD}{policy}")

    @contextmanager
    def step(self, name: str) -> Iterator[Progress]:
        """A step that is being made; the report it gives moves the bar."""
        started = time.monotonic()
        if not self.live:
            yield lambda done, total, text: None
            self._done(name, started)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("  {task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(name, total=None, text="")

            def report(done: int, total: int, text: str) -> None:
                bars.update(task, completed=done, total=total or None, text=text)

            yield report
        self._done(name, started)

    def note(self, name: str, text: str) -> None:
        """The numbers that matter of a step."""
        self.say(f"  {name:<9} {text}")

    def _done(self, name: str, started: float) -> None:
        self.say(f"  {name:<9} {time.monotonic() - started:6.1f} s")
