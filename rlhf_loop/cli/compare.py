"""`rlhf-loop compare`: strategies compared, at equal cost and on the same prompts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import CheckMemory, shortest
from rlhf_loop.errors import UserError


def compare(
    sweep: Annotated[Path, typer.Argument(help="A sweep, such as recipes/compare/algorithms.yaml.", metavar="SWEEP")],
    folder: Annotated[Path | None, typer.Option(help="Folder of the comparison (default: runs/NAME).")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time (default: one for each accelerator, one on a CPU).")
    ] = None,
    check_memory: CheckMemory = True,
) -> None:
    """Run the cells of a sweep with the same seeds, or go on with what stopped, and say what differs."""
    from rlhf_loop.comparison import compare as compare_cells
    from rlhf_loop.processes import terminable
    from rlhf_loop.progress import RunProgress

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`compare` starts a process for each run itself; start it once, without a launcher")
    progress = RunProgress()
    with terminable():
        try:
            found = compare_cells(sweep, folder, jobs, progress, check_memory)
        except KeyboardInterrupt:
            print("\nstopped. Nothing is lost: type the same command again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None
    progress.say(f"\n{found.sentence}")
    if found.unequal:
        progress.say("Cells did not spend alike: " + "; ".join(found.unequal))
    for line in found.yardsticks:
        progress.say(f"Not measured alike: {line}")
    progress.say(f"Report: {shortest(found.report)}\nResults: {shortest(found.results)}")
    for name, error in found.errors.items():
        print(f"error: {name}: {error}", file=sys.stderr)
    if found.errors:
        raise typer.Exit(2)
