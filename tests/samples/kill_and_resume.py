"""Run by tests/loop/test_resume.py: kills a run with SIGKILL at one point after the other, then lets it finish.

    python kill_and_resume.py RECIPE RUN [key=value ...] POINT [POINT ...]

A point is ROUND/STEP/WHEN, or ROUND/STEP/WHEN:SIGINT or :SIGTERM for that signal in place of SIGKILL. WHEN:
`before` or `after` the step's folder is put in its place, `taken` (complete, the
process dies before anything else), `step-K` (inside training, after optimizer step K) or `checkpoint-K` (while the
checkpoint of step K lies there without its mark). Each attempt is a fork of this process, so torch is imported once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import rlhf_loop.files.step_folders as step_folders
import rlhf_loop.stages.evaluate
import rlhf_loop.stages.generate
import rlhf_loop.stages.reward
import rlhf_loop.stages.score
import rlhf_loop.stages.update  # noqa: F401
from rlhf_loop import Loop, Recipe
from rlhf_loop.models.checkpoints import MarkComplete
from rlhf_loop.models.training import TrainingLog
from rlhf_loop.processes import terminable


def arm(point: str) -> None:
    point, _, name = point.partition(":")
    number_of_signal = signal.Signals[name or "SIGKILL"]

    def die() -> None:
        signal.raise_signal(number_of_signal)

    round_number, step, when = point.split("/")
    place = f"round_{int(round_number):03d}/{step}"
    commit = step_folders.commit_folder

    def committing(partial: Path, folder: Path) -> None:
        here = str(folder).endswith(place)
        if here and when == "before":
            die()
        commit(partial, folder)
        if here and when == "after":
            die()

    step_folders.commit_folder = committing
    kind, _, number = when.partition("-")
    if kind == "step":
        shown = TrainingLog.on_step_end

        def stepping(self, args, state, control, **kwargs):
            shown(self, args, state, control, **kwargs)
            if f"{place}.partial" in args.output_dir and state.global_step == int(number):
                die()

        TrainingLog.on_step_end = stepping
    if kind == "checkpoint":
        mark = MarkComplete.on_save

        def saving(self, args, state, control, **kwargs):
            if f"{place}.partial" in args.output_dir and state.global_step == int(number):
                (Path(args.output_dir) / f"checkpoint-{number}" / "adapter_model.safetensors").write_bytes(b"torn")
                die()
            mark(self, args, state, control, **kwargs)

        MarkComplete.on_save = saving


def attempt(recipe: str, settings: list[str], run: str, point: str | None) -> int:
    child = os.fork()
    if child == 0:
        try:
            if point:
                arm(point)
            with terminable():
                Loop(Recipe.load(recipe, settings), run_dir=run).run()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    recipe, run, *rest = sys.argv[1:]
    settings, points = [one for one in rest if "=" in one], [one for one in rest if "=" not in one]
    for point in points:
        status = attempt(recipe, settings, run, point)
        if os.waitstatus_to_exitcode(status) != (130 if ":" in point else -signal.SIGKILL):
            sys.exit(f"the run was to die at {point}, but ended with status {status}")
    sys.exit(1 if attempt(recipe, settings, run, None) else 0)
