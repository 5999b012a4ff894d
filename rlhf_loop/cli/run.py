"""`rlhf-loop run`: a recipe, or one recipe with several values of a setting, one run each."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_loop.cli.shared import CheckMemory, command, shortest
from rlhf_loop.errors import UserError

if TYPE_CHECKING:
    from rlhf_loop.loop import Loop, RunResult
    from rlhf_loop.progress import RunProgress


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds in all (default: the recipe's).")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    wait: Annotated[bool, typer.Option(help="Stop while people have questions to answer.")] = True,
    stay: Annotated[
        bool, typer.Option("--stay", help="Wait until people have answered, and go on (on a machine without GPUs).")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="One run for each value, such as seed=0,1,2, in RUN-seed-0 and so on.", metavar="KEY=V,V"),
    ] = None,
    check_memory: CheckMemory = True,
) -> None:
    """Run a recipe, or go on with a run that stopped."""
    from rlhf_loop.processes import terminable
    from rlhf_loop.progress import RunProgress

    progress = RunProgress()
    overrides = overrides or []
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        progress.say("one process takes part (on CPU, Accelerate starts one; `torchrun --nproc_per_node N` starts N)")
    with terminable():
        try:
            if sweep:
                if stay:
                    raise UserError("--stay waits for the answers to one run; leave --sweep or --stay out")
                _sweep(recipe, overrides, sweep, rounds, run_dir, wait, check_memory, progress)
            else:
                _run(recipe, overrides, rounds, run_dir, wait, stay, check_memory, progress)
        except KeyboardInterrupt:
            print("\nstopped. Nothing is lost: type the same command again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None


def _run(
    recipe: Path,
    overrides: list[str],
    rounds: int | None,
    run_dir: Path | None,
    wait: bool,
    stay: bool,
    check_memory: bool,
    progress: RunProgress,
) -> None:
    from rlhf_loop.kept_recipe import RecipeChanged
    from rlhf_loop.loop import Loop
    from rlhf_loop.recipe import Recipe

    try:
        loop = Loop(Recipe.load(recipe, overrides), run_dir=run_dir, progress=progress)
        result = loop.run(rounds=rounds, wait=wait, check_memory=check_memory)
        while stay and result.waiting_for_labels:
            progress.say(f"waiting for labels: {result.waiting_for_labels} questions are open")
            _until_answered(loop, progress)
            result = loop.run(rounds=rounds, wait=wait, check_memory=check_memory)
    except RecipeChanged as error:
        raise UserError(f"{error}. For a run of its own type:\n  {_with_run_dir(error.elsewhere)}") from None
    place = shortest(result.run_dir)
    if result.waiting_for_labels:
        progress.say(
            f"\nwaiting for labels: {result.waiting_for_labels} questions are open. To answer them on a page:\n"
            f"  {command()} serve {place}\n"
            "or in a file, where you fill in each `winner` (a, b, tie or both_bad):\n"
            f"  {command()} feedback export questions.jsonl --format questions --store {place}\n"
            f"  {command()} feedback import questions.jsonl --store {place}\n"
            "then type the same command again."
        )
    elif result.complete_rounds:
        progress.say(f"\nTo chat with the policy and judge its answers yourself: {command()} serve {place}")
    count = result.complete_rounds
    done = (
        f"{count} round{'s' * (count != 1)} complete" if count else "round 0 is complete: the base and its candidates"
    )
    progress.say(f"\n{done}. Report: {shortest(result.report)}")
    own = recipe.parent / "own_pairs.yaml"
    if own.exists() and own != recipe:
        progress.say(
            'With your own feedback, a line {"prompt", "chosen", "rejected"} for each pair:\n'
            f"  {command()} run {own} feedback.imports.0.path=YOUR_PAIRS.jsonl"
        )


def _until_answered(loop: Loop, progress: RunProgress) -> None:
    """Looks every `watch.poll_seconds` whether people have questions left; a store that is away is looked for again."""
    from rlhf_loop.feedback.store.store import Store

    said = None
    while True:
        time.sleep(loop.recipe.watch.poll_seconds)
        try:
            with Store.open(loop.store_url) as store:
                if not store.open_questions():
                    return
            said = None
        except UserError as error:
            if str(error) != said:
                said = str(error)
                progress.say(f"looking again: {said}")


def _sweep(
    recipe: Path,
    overrides: list[str],
    sweep: list[str],
    rounds: int | None,
    run_dir: Path | None,
    wait: bool,
    check_memory: bool,
    progress: RunProgress,
) -> None:
    """One run after the other; what is wrong with one does not keep the others from running."""
    from rlhf_loop.cli.sweeps import swept
    from rlhf_loop.loop import Loop

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--sweep makes one run after the other and is for one process; use `launch=child` for many")
    loops = [
        Loop(loaded, run_dir=place, progress=progress) for loaded, _, place in swept(recipe, overrides, sweep, run_dir)
    ]
    ends: list[tuple[Path, RunResult | str]] = []
    for loop in loops:
        progress.say(f"\n{shortest(loop.run_dir.path)}")
        try:
            ends.append((loop.run_dir.path, loop.run(rounds=rounds, wait=wait, check_memory=check_memory)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            ends.append((loop.run_dir.path, str(error)))
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(_table(ends))
    if any(isinstance(end, str) for _, end in ends):
        raise typer.Exit(2)


def _table(ends: list[tuple[Path, RunResult | str]]) -> Any:
    from rich.table import Table

    from rlhf_loop.report.status import shown_rate, status
    from rlhf_loop.run_dir import RunDir

    table = Table(box=None, pad_edge=False)
    for name in ("run", "rounds", "win-rate vs base", "decision", "report"):
        justify: Any = "right" if name == "rounds" else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name == "run")
    for place, end in ends:
        if isinstance(end, str):
            table.add_row(shortest(place), "-", "-", "-", f"error: {end.splitlines()[0]}")
            continue
        rounds = status(RunDir(place))["rounds"]
        last = rounds[-1] if rounds else {"win_rate_vs_base": None, "decision": None}
        state = f"{end.waiting_for_labels} questions wait" if end.waiting_for_labels else last["decision"] or "-"
        rate = shown_rate(last["win_rate_vs_base"])
        table.add_row(shortest(place), str(end.complete_rounds), rate, state, shortest(end.report))
    return table


def _with_run_dir(folder: Path) -> str:
    """The command that was typed, with another folder for the run."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--run-dir":
            next(words, None)
        elif not word.startswith("--run-dir="):
            kept.append(word)
    return f"{command()} {shlex.join([*kept, '--run-dir', shortest(folder)])}"
