"""A stage in a process of its own, as a job of a cluster starts it: once made it is kept, and it has one writer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rlhf_loop.files import locks
from rlhf_loop.files.locks import locked
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.stages import __main__ as entry
from rlhf_loop.stages.arguments import StageArguments


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "run" / "round_001" / "update.arguments.json"
    output = file.with_name("update")
    StageArguments(stage="update", title="run", round=1, key="key", output=str(output), recipe={}).write(file)

    def run_stage(file: Path, progress: object) -> None:
        with step_folder(output, "key", {}) as partial:
            (partial / "made.txt").write_text(str(sorted(path.name for path in file.parent.glob("*.lock"))))

    monkeypatch.setattr(entry, "run_stage", run_stage)
    return file


def made(arguments: Path) -> str:
    return (arguments.with_name("update") / "made.txt").read_text()


def test_a_job_that_is_started_again_keeps_what_is_made(arguments: Path) -> None:
    entry.main(arguments)
    (arguments.with_name("update") / "made.txt").write_text("mark")
    entry.main(arguments)
    assert made(arguments) == "mark"


def test_a_job_has_a_lock_of_its_own_and_a_child_that_of_the_run(arguments: Path) -> None:
    entry.main(arguments)
    assert made(arguments) == "['update.lock']"
    assert list(arguments.parent.glob("*.lock")) == []
    StageArguments(
        stage="update", title="r", round=2, key="new", output=str(arguments.with_name("update")), recipe={}
    ).write(arguments)
    with locked(arguments.parents[1] / "lock", "the run"):
        entry.main(arguments)
    assert made(arguments) == "[]"


def test_a_job_waits_for_its_former_self_that_is_alive_after_all(
    arguments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = arguments.with_name("update.lock")
    waited = threading.Event()
    sleep = locks.time.sleep

    def former_self_ends(seconds: float) -> None:
        if not waited.is_set():
            waited.set()
            with step_folder(arguments.with_name("update"), "key", {}) as partial:
                (partial / "made.txt").write_text("by the former self")
            former.__exit__(None, None, None)
        sleep(seconds)

    former = locked(lock, "update")
    former.__enter__()
    monkeypatch.setattr(locks, "_tell", lambda held: None)
    os.environ["RLHF_LOOP_LOCKS"] = "[]"  # it is another process
    monkeypatch.setattr(locks.time, "sleep", former_self_ends)
    entry.main(arguments)
    assert waited.is_set()
    assert made(arguments) == "by the former self"
