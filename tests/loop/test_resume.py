"""A run that was killed anywhere, and started again, ends as one that was not, in a folder of any name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from samples.runs import outputs, store_content

from rlhf_loop.run_dir import STEPS, RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
DRIVER = Path(__file__).parents[1] / "samples" / "kill_and_resume.py"

NOT_MADE = ("judge", "evaluate_warm_start", "checks", "recall", "embed")
OF_THE_PAST = (
    "generation.strategy=refine+exemplars",
    "generation.exemplars.min_standing=0",
    "generation.max_new_tokens=8",
    "feedback.annotator.critiques=true",
    "critiques={checks: {}, fresh: {}, revisions: {}, predict: {}}",
)
"""Settings of a run whose candidates and checks come of what was written and heard before."""


def drive(run: Path, *points: str) -> None:
    command = [sys.executable, str(DRIVER), str(SMOKE), str(run), *points]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    run = tmp_path_factory.mktemp("whole") / "smoke"
    drive(run)
    return run


def same(run: Path, whole: Path) -> None:
    assert outputs(run) == outputs(whole)
    assert store_content(run) == store_content(whole)
    assert RunDir(run).complete_rounds() == [0, 1, 2]


def test_killed_before_each_step_is_in_place(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "before"
    steps = [step for step in STEPS if step not in NOT_MADE]
    first = [f"0/{step}/before" for step in ("snapshot", "evaluate", "generate", "ask")]
    drive(run, *first, *(f"1/{step}/before" for step in steps), "2/update/before")
    same(run, uninterrupted)


def test_killed_after_each_step_is_in_place_and_before_the_store_has_it(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "after"
    steps = [step for step in STEPS if step not in NOT_MADE]
    first = [f"0/{step}/after" for step in ("snapshot", "evaluate", "generate", "ask")]
    drive(run, *first, *(f"1/{step}/after" for step in steps), "2/gate/after")
    same(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_stopped_by_a_signal_in_every_step_and_inside_training(
    uninterrupted: Path, tmp_path: Path, number: str
) -> None:
    run = tmp_path / "stopped"
    steps = [step for step in STEPS if step not in NOT_MADE]
    first = [f"0/{step}/before" for step in ("snapshot", "evaluate", "generate", "ask")]
    inside = ["1/update/step-1", "1/update/checkpoint-2", "2/update/step-3"]
    points = [*first, *(f"1/{step}/before" for step in steps), *inside[2:]]
    points[points.index("1/update/before") : points.index("1/update/before")] = inside[:2]
    drive(run, *(f"{point}:{number}" for point in points))
    assert RunDir(run).used_by() is None
    same(run, uninterrupted)


def test_killed_inside_training_and_while_a_checkpoint_is_written(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "inside"
    drive(run, "1/update/step-1", "1/update/checkpoint-2", "1/update/step-3", "2/update/checkpoint-4")
    same(run, uninterrupted)


def test_killed_in_what_reads_of_the_past(tmp_path: Path, model_cache: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "killed"
    drive(whole, *OF_THE_PAST)
    steps = ("checks", "recall", "generate", "embed")
    assert all(RunDir(whole).step(2, step).is_dir() for step in steps)
    points = [f"{number}/{step}/{when}" for number in (1, 2) for step in steps for when in ("before", "after")]
    drive(run, *OF_THE_PAST, "0/embed/before", "0/embed/after", *points)
    same(run, whole)
