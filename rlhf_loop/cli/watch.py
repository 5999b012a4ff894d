"""`rlhf-loop watch`: rounds that start by themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import CheckMemory


def watch(
    recipe: Annotated[Path, typer.Argument(help="A recipe with a `watch:` block.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Look once, make at most one round: for cron and Slurm.")
    ] = False,
    check_memory: CheckMemory = True,
) -> None:
    """Start a round whenever enough new, valid feedback has arrived, as the recipe's `watch:` block says."""
    from rlhf_loop.watch.watcher import Watcher

    watcher = Watcher(
        recipe, overrides or [], run_dir, say=lambda line: print(line, flush=True), check_memory=check_memory
    )
    try:
        step = watcher.watch(once=once)
    except KeyboardInterrupt:
        print("stopped watching. A round that had begun goes on where it was with the next watcher.", file=sys.stderr)
        raise typer.Exit(0) from None
    if step.outcome == "failed":
        raise typer.Exit(1)
