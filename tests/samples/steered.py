"""Stand-ins on a real Slurm: a loop of one stage, and a training that only waits, so that neither needs torch.

    steered.py run ... --run-dir RUN ...     in place of `rlhf-loop`: takes the run's lock and has one update made
    steered.py ... -m rlhf_loop.stages ARGS  in place of `torchrun`: `rlhf_loop.stages`, but for the work of the stage
    steered.py ... -m rlhf_loop run ...      in place of `torchrun`: writes down what a run was started with

The scripts of recipes/cluster, the launcher, the stage's lock and its folder are the real ones. The training does STEPS
steps of PAUSE seconds, and keeps a checkpoint every EVERY steps.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

EVERY = 5


def run(words: list[str]) -> None:
    """What the steering job starts."""
    from rlhf_loop import launch
    from rlhf_loop.kept_recipe import keep_recipe
    from rlhf_loop.processes import terminable
    from rlhf_loop.progress import RunProgress
    from rlhf_loop.recipe import Recipe
    from rlhf_loop.run_dir import RunDir
    from rlhf_loop.stages.arguments import StageArguments

    folder = RunDir(words[words.index("--run-dir") + 1])
    recipe = Recipe.load(words[0], [word for word in words if "=" in word])
    with terminable(), folder.locked():
        keep_recipe(recipe, folder)
        launcher = launch.choose(recipe)
        file, output = folder.arguments(1, "update"), str(folder.step(1, "update"))
        StageArguments(stage="update", title=folder.name, round=1, key="key", output=output, recipe={}).write(file)
        with RunProgress().step("update") as report:
            launcher.run(file, report)
    print("the run is complete")


def stage(file: Path) -> None:
    """What each node of a stage's job starts."""
    from rlhf_loop.errors import UserError
    from rlhf_loop.stages import __main__ as entry

    entry.run_stage = train
    try:
        entry.main(file)
    except UserError as error:
        sys.exit(f"error: {error}")


def train(file: Path, report: object) -> None:
    """Waits, step by step, and goes on from its last checkpoint."""
    from rlhf_loop.files.step_folders import step_folder
    from rlhf_loop.stages.arguments import StageArguments

    arguments = StageArguments.read(file)
    with step_folder(Path(arguments.output), arguments.key, {}, keep_partial=True) as partial:
        steps = int(os.environ["STEPS"])
        kept = [int(path.name.partition("-")[2]) for path in partial.glob("checkpoints/checkpoint-*")]
        for step in range(max(kept, default=0) + 1, steps + 1):
            time.sleep(float(os.environ["PAUSE"]))
            report(step, steps, f"step {step}")
            if step % EVERY == 0:
                (partial / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (partial / "policy.txt").write_text("trained")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        try:
            run(sys.argv[2:])
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            sys.exit(f"error: {error}")
    elif sys.argv[-2] == "rlhf_loop.stages":
        stage(Path(sys.argv[-1]))
    else:
        Path(sys.argv[sys.argv.index("--run-dir") + 1], "started.txt").write_text(" ".join(sys.argv[1:]))
