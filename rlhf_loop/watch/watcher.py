"""Starts rounds when it is time, one after the other, each in a process of its own.

A round that crashes does not end the watcher, and its memory is freed. What a watcher knows is in the store and in the
run's folder; `RUN/watch.json` only holds what is still to be told and the last failure.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_loop import processes
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.arrivals import state_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import explain_os_error, private, read_json
from rlhf_loop.files.locks import InUse, locked
from rlhf_loop.kept_recipe import check_recipe
from rlhf_loop.loop import Loop
from rlhf_loop.plan.floor import UNCHECKED
from rlhf_loop.processes import LastLines, terminable
from rlhf_loop.progress import is_head
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import stable_id
from rlhf_loop.watch.events import SECRET_VARIABLE, Event, Kind, check_url
from rlhf_loop.watch.outbox import COMMAND, Outbox
from rlhf_loop.watch.triggers import News, arrivals, early_obstacles, is_quiet, last_end, news, obstacles

RETRY_FIRST = 60.0  # seconds until a round that failed is tried again; twice as long after each further failure
RETRY_LONGEST = 6 * 3600.0
DRAIN = 20.0  # seconds that the end of a watcher gives to what was not told yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one look at the store came to."""

    outcome: Literal["ran", "waits", "failed"]
    reasons: list[str]


class Watcher:
    """Watches the store of one run."""

    def __init__(
        self,
        recipe_file: Path,
        overrides: Sequence[str] = (),
        run_dir: Path | None = None,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.time,
        check_memory: bool = True,
    ):
        """Reads the recipe. `check_memory`: as in `Loop.run`. Raises `UserError` for a recipe, URL or quiet hours that
        are wrong, for webhooks without a secret to sign them with, and for a run that was begun with another recipe."""
        self.recipe = Recipe.load(recipe_file, overrides)
        self.loop = Loop(self.recipe, run_dir=run_dir)
        self.run = self.loop.run_dir
        self.say, self.clock = say, clock
        self._command = [
            sys.executable,
            "-m",
            "rlhf_loop",
            "run",
            str(recipe_file),
            *overrides,
            "--run-dir",
            str(self.run.path),
            "--no-wait",
            *([] if check_memory else [UNCHECKED]),
        ]
        check_recipe(self.recipe, self.run)
        settings = self.recipe.watch
        is_quiet(settings.quiet_hours, 0.0)
        secret = os.environ.get(SECRET_VARIABLE, "")
        if settings.webhooks and not secret:
            raise UserError(f"watch.webhooks are signed: set {SECRET_VARIABLE} to a secret that the receiver knows too")
        targets = [check_url(url) for url in settings.webhooks] + ([COMMAND] if settings.command else [])
        try:
            private.make_folder(self.run.path)
        except OSError as error:
            raise explain_os_error(error, self.run.path) from None
        self._make_outbox: Callable[[], Outbox] = lambda: Outbox(
            self.run.path / "watch.json", targets, secret=secret, command=settings.command, say=say
        )
        self._looked_at: tuple[Any, News] | None = None

    def watch(self, once: bool = False) -> Step:
        """Looks and starts rounds until it is stopped (`KeyboardInterrupt`; SIGTERM becomes one); `once`: one look,
        and at most one round. Raises `UserError` when another watcher watches this run."""
        with terminable(), self._alone() as other:
            if other is not None:
                reason = f"{self.run.path} is watched by {other} already; one is enough"
                if not once:
                    raise UserError(reason)
                self.say(f"{_now()} no round: {reason}")
                return Step(outcome="waits", reasons=[reason])
            self.outbox = self._make_outbox()
            self.outbox.start()
            said: list[str] | None = None
            try:
                while True:
                    try:
                        step = self.look()
                    except UserError as error:  # the store is away, the disk is full: not for ever
                        if once:
                            raise
                        step = Step(outcome="waits", reasons=[str(error)])
                    if step.outcome == "waits" and step.reasons != said:
                        self.say(f"{_now()} no round yet: {'; '.join(step.reasons)}")
                        said = step.reasons
                    if once:
                        return step
                    if step.outcome != "ran":
                        time.sleep(self.recipe.watch.poll_seconds)
            finally:
                self.outbox.stop(DRAIN)

    def look(self) -> Step:
        """One look at the store, and a round when it is time for one."""
        self._tell_outcomes()
        number, reasons = self._next()
        if not reasons:
            return self._make(number)
        after = number - 1
        if after >= 0 and self.outbox.memory.waiting_after != after and after in self.run.complete_rounds():
            self.outbox.change(self._event("waiting", after, {"reasons": reasons}), waiting_after=after)
        return Step(outcome="waits", reasons=reasons)

    def _next(self) -> tuple[int, list[str]]:
        """The next round's number, and why it does not start now."""
        complete = self.run.complete_rounds()
        number = complete[-1] + 1 if complete else 0
        if owner := self.run.used_by():
            return number, [f"{owner} works on this run"]
        failure, now = self.outbox.memory.failure, self.clock()
        if failure and failure["round"] == number:
            due = failure["at"] + min(RETRY_LONGEST, RETRY_FIRST * 2 ** (failure["times"] - 1))
            if failure["at"] <= now < due:  # otherwise the clock was set back
                when = time.strftime("%H:%M", time.localtime(due))
                return number, [f"round {number} failed, and is tried again at {when}: {failure['error']}"]
        if number == 0 or number in self.run.rounds():  # the first candidates; or a round that was stopped goes on
            quiet = self.recipe.watch.quiet_hours
            return number, [f"quiet hours, {quiet}"] if is_quiet(quiet, now) else []
        ended = last_end(self.run)
        with Store.open(self.loop.store_url) as store:
            waits = early_obstacles(arrivals(store, self.run), self.recipe, now=now, last_end=ended)
            if waits:
                return number, waits
            return number, obstacles(self._news(store), self.recipe.watch, now=now, last_end=ended)

    def _news(self, store: Store) -> News:
        """What is new; validated again only when something was written to the store or a round was completed."""
        key = (state_of(store), self.run.complete_rounds())
        if self._looked_at is None or self._looked_at[0] != key:
            self._looked_at = (key, news(store, self.recipe, self.run))
        return self._looked_at[1]

    def _make(self, number: int) -> Step:
        """Round `number`, in a process of its own; all ends of it are told."""
        failure = self.outbox.memory.failure
        times = failure["times"] if failure and failure["round"] == number else 0
        details: dict[str, Any] = {"attempt": times + 1}
        if number and self._looked_at is not None and self._looked_at[1].next_round == number:
            details["new_feedback"] = self._looked_at[1].count

        def begun() -> None:
            self.say(f"{_now()} round {number} starts")
            self.outbox.change(self._event("started", number, details, times), told=max(number - 1, 0))

        error = self._run(number, begun)
        if error is None:
            self.outbox.change(failure=None)
            self._tell_outcomes()
            return Step(outcome="ran", reasons=[])
        self.say(f"{_now()} round {number} failed: {error}")
        failed = {"round": number, "times": times + 1, "at": self.clock(), "error": error}
        self.outbox.change(self._event("failed", number, {**details, "error": error}, times), failure=failed)
        return Step(outcome="failed", reasons=[error])

    def _run(self, number: int, begun: Callable[[], None]) -> str | None:
        """Runs `rlhf-loop run` up to round `number`; gives why it failed, or None.

        Calls `begun` when the round has begun, which it has not as long as its recipe, prompts and rewards are read.
        """
        last = LastLines()
        waiting = True

        def hear(line: str) -> None:
            nonlocal waiting
            if waiting and is_head(line, number):
                waiting = False
                begun()
            self.say(line)
            last.add(line)

        # Stopped, the round stops too, and goes on where it was with the next watcher. It has children of its own.
        code = processes.run([*self._command, "--rounds", str(number)], hear, stop_seconds=3 * processes.STOP_SECONDS)
        if code == 0 and number in self.run.complete_rounds():
            return None
        if last.error is not None:
            return last.error
        said = f": {last.last or 'it said nothing'}" if code >= 0 else ""
        return f"its process {processes.how_ended(code)}{said}"

    def _tell_outcomes(self) -> None:
        """Tells how rounds ended that were completed since the last look, by whomever."""
        complete = self.run.complete_rounds()
        told = self.outbox.memory.told
        if told is None:  # the first watcher of this run: what was before is history
            if complete:
                self.outbox.change(told=complete[-1])
            return
        for number in [n for n in complete if n > told]:
            decision = self.run.step(number, "gate") / "decision.json"
            events = []
            if decision.exists():
                made = read_json(decision)
                kind: Kind = "promoted" if made["promoted"] else "rejected"
                self.say(f"{_now()} round {number}: {made['reason']}")
                events.append(self._event(kind, number, {"reason": made["reason"], **self._measured(number)}))
            self.outbox.change(*events, told=number)

    def _measured(self, number: int) -> dict[str, Any]:
        file = self.run.step(number, "evaluate") / "evaluation.json"
        with Store.open(self.loop.store_url) as store:
            measured: dict[str, Any] = {"promoted_policy": self.loop.promoted_id(store)}
        return {**measured, "win_rate_vs_base": read_json(file).get("win_rate_vs_base")} if file.exists() else measured

    def _event(self, kind: Kind, number: int, details: dict[str, Any], attempt: int = 0) -> Event:
        id = stable_id("event", str(self.run.path), kind, number, attempt)
        return Event(id=id, kind=kind, run=self.run.name, round=number, at=self.clock(), details=details)

    @contextmanager
    def _alone(self) -> Iterator[str | None]:
        """One watcher a run: gives None, or which process watches it, in words."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.run.path / "watch.lock", f"watching {self.run.path}"))
                other = None
            except InUse as found:
                other = found.owner
            yield other


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
