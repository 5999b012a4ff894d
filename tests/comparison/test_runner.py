"""Runs in processes of their own: killed, failing, in use. A script stands in for `rlhf-loop run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rlhf_loop.comparison import runner
from rlhf_loop.comparison.runner import at_a_time, environment, expected_seconds, make_runs
from rlhf_loop.comparison.sweep import CellRun
from rlhf_loop.errors import UserError
from rlhf_loop.recipe import Recipe

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
STANDS_IN = """
import json, pathlib, sys, time
folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
for number in range(3):
    print(f"round {number} of 2 \\u00b7 policy base", flush=True)
    made = folder / f"round_{number:03d}" / "manifest.json"
    if made.exists():
        continue
    time.sleep(seconds)
    if folder.parent.name == "broken":
        sys.exit("error: it cannot be made")
    if folder.parent.name == "people" and number:
        sys.exit(0)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps({"seconds": 30.0}))
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CellRun]:
    """Four of two cells."""
    recipe = Recipe.load(SMOKE)
    script = tmp_path / "stands_in.py"
    script.write_text(STANDS_IN)
    monkeypatch.setattr(runner, "command", lambda run, check: [sys.executable, str(script), str(run.folder), "0.05"])
    return [
        CellRun(cell=cell, seed=seed, recipe=recipe, folder=tmp_path / "all" / cell / f"seed_{seed}")
        for seed in (0, 1)
        for cell in ("good", "broken")
    ]


def make(runs: Sequence[CellRun], jobs: int = 1) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    return make_runs(runs, jobs, said.append), said


def test_a_run_that_fails_stops_no_other_and_is_told(runs: list[CellRun]) -> None:
    errors, said = make(runs, jobs=2)
    assert errors == dict.fromkeys(["broken seed 0", "broken seed 1"], "it cannot be made")
    assert all(runner.is_complete(run) for run in runs if run.cell == "good")
    assert said[0] == "4 runs, 2 at a time. 4 left; how long they take is known when the first is complete"
    assert "good seed 0: round 1 of 2" in said
    assert any(line.startswith("good seed 0: complete in 2 min") for line in said)
    log = Path(f"{runs[0].folder}.log").read_text()
    assert "round 2 of 2" in log


def test_a_log_that_cannot_be_written_stops_no_run(runs: list[CellRun]) -> None:
    for run in runs[:2]:
        Path(f"{run.folder}.log").mkdir(parents=True)
    errors, _ = make(runs[:2])
    assert runner.is_complete(runs[0])
    assert errors == {"broken seed 0": "it cannot be made"}


def test_a_run_that_waits_for_people_is_not_complete_and_says_so(runs: list[CellRun]) -> None:
    asked = replace(runs[0], cell="people", folder=runs[0].folder.parents[1] / "people" / "seed_0")
    errors, _ = make([asked])
    assert "waits for people's answers" in errors["people seed 0"]


def test_a_killed_run_goes_on_at_the_next_call_and_what_is_complete_is_not_made_again(
    runs: list[CellRun], tmp_path: Path
) -> None:
    good = [run for run in runs if run.cell == "good"]
    killed: list[int] = []

    def say(line: str) -> None:
        if line == "good seed 0: round 1 of 2" and not killed:
            child = next(p for p in psutil.Process().children() if str(good[0].folder) in p.cmdline())
            killed.append(child.pid)
            child.send_signal(signal.SIGKILL)

    errors = make_runs(good, 1, say)
    assert list(errors) == ["good seed 0"]
    assert "exit code -9" in errors["good seed 0"]
    first = good[0].folder / "round_000" / "manifest.json"
    made_at = first.stat().st_mtime_ns
    errors, said = make(good)
    assert errors == {}
    assert said[0] == "2 runs (1 are complete), 1 at a time. 1 left, about 1 min"  # 90 s less round 0's 30
    assert first.stat().st_mtime_ns == made_at
    assert make(good) == ({}, ["all 2 runs are complete"])


def test_the_processes_end_when_the_comparison_is_stopped(runs: list[CellRun]) -> None:
    def say(line: str) -> None:
        if line == "good seed 0: round 1 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_runs(runs[:1], 1, say)
    assert not any(str(runs[0].folder) in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_a_run_that_another_process_works_on_is_waited_for(runs: list[CellRun]) -> None:
    folder = runs[0].folder
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from rlhf_loop.run_dir import RunDir\n"
            "with RunDir(sys.argv[1]).locked():\n print('held', flush=True); time.sleep(60)",
            str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SMOKE.parents[1])},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting for that" in line:
            threading.Thread(target=lambda: (time.sleep(0.2), holder.kill()), daemon=True).start()

    assert make_runs(runs[:1], 1, say) == {}
    holder.wait()
    assert f"good seed 0: process {holder.pid}" in said[1]
    assert said[2].startswith("good seed 0: begun")


def test_each_run_has_an_accelerator_of_its_own_or_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, runs: list[CellRun]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert at_a_time(runs, None) == 2
    assert [environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4", "GPU-7"]
    assert environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "4,GPU-7"
    shared = [CellRun(cell="x", seed=0, recipe=Recipe.load(SMOKE, ["launch=child"]), folder=runs[0].folder)]
    assert at_a_time(shared, None) == 1
    with pytest.raises(UserError, match="takes all accelerators for one run"):
        at_a_time(shared, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "cpu_quota", lambda: 8)
    assert at_a_time(runs, None) == 1
    assert environment(1, 2)["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in environment(0, 1)


def test_the_time_that_is_left_follows_what_the_cells_own_runs_took(runs: list[CellRun]) -> None:
    left = [runs[2], runs[3]]
    assert expected_seconds({"good": [100.0, 200.0]}, left) == 150 + 150
    assert expected_seconds({"good": [100.0], "broken": [10.0]}, left) == 110
