"""A stage that a launcher makes in a job of a cluster, and what happens to it from one look to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.launch import stage_job
from rlhf_loop.launch.launcher import Launcher
from rlhf_loop.stages.arguments import StageArguments

Event = Callable[[], object]


class StageInAJob:
    """The update of round 1 of a run that `launcher`, a module, makes; no time passes."""

    def __init__(self, folder: Path, launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, title: str = "run"):
        self.run, self.title = folder / "run", title
        self.file = self.run / "round_001" / "update.arguments.json"
        self.output = self.run / "round_001" / "update"
        self.heard: list[tuple[int, int, str]] = []
        self.events: list[Event] = []
        self.write("key")
        clock = SimpleNamespace(sleep=lambda seconds: self.events.pop(0)(), monotonic=time.monotonic)
        for module in (launcher, stage_job):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(stage_job, "APPEARS", 0)

    def write(self, key: str) -> None:
        """The file of its arguments."""
        StageArguments(
            stage="update", title=self.title, round=1, key=key, output=str(self.output), recipe={}
        ).write(self.file)  # fmt: skip

    def follow_by(self, launcher: Launcher, *events: Event) -> None:
        """Until it is made; each event happens before the next look."""
        self.events = list(events)
        launcher.run(self.file, lambda *told: self.heard.append(told))
        assert not self.events

    def make(self, key: str = "key") -> None:
        with step_folder(self.output, key, {}) as partial:
            (partial / "policy").mkdir()

    def checkpoint(self, step: int) -> None:
        (self.output.with_name("update.partial") / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)

    def log(self, attempt: str, text: str) -> None:
        """A node of an attempt says something."""
        log = self.run / "logs" / attempt / "n1.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(text)
