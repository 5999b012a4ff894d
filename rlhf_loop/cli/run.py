"""`rlhf-loop run`: a recipe, or one recipe with several values of a setting, one run each."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_loop.cli.shared import command, shortest
from rlhf_loop.errors import UserError

if TYPE_CHECKING:
    from rlhf_loop.loop import RunResult
    from rlhf_loop.progress import RunProgress


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds in all (default: the recipe's).")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    wait: Annotated[bool, typer.Option(help="Stop while people have questions to answer.")] = True,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="One run for each value, such as seed=0,1,2, in RUN-seed-0 and so on.", metavar="KEY=V,V"),
    ] = None,
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
                _sweep(recipe, overrides, sweep, rounds, run_dir, wait, progress)
            else:
                _run(recipe, overrides, rounds, run_dir, wait, progress)
        except KeyboardInterrupt:
            print("\nstopped. Nothing is lost: type the same command again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None


def _run(
    recipe: Path, overrides: list[str], rounds: int | None, run_dir: Path | None, wait: bool, progress: RunProgress
) -> None:
    from rlhf_loop.kept_recipe import RecipeChanged
    from rlhf_loop.loop import Loop
    from rlhf_loop.recipe import Recipe

    try:
        loop = Loop(Recipe.load(recipe, overrides), run_dir=run_dir, progress=progress)
        result = loop.run(rounds=rounds, wait=wait)
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


def _sweep(
    recipe: Path,
    overrides: list[str],
    sweep: list[str],
    rounds: int | None,
    run_dir: Path | None,
    wait: bool,
    progress: RunProgress,
) -> None:
    """One run after the other; what is wrong with one does not keep the others from running."""
    from rlhf_loop.loop import Loop
    from rlhf_loop.recipe import Recipe

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--sweep makes one run after the other and is for one process; use `launch=child` for many")
    loops = []
    for setting in itertools.product(*map(_values, sweep)):
        loaded = Recipe.load(recipe, [*overrides, *(f"{key}={value}" for key, value in setting)])
        base = run_dir or loaded.run_dir or Path("runs") / loaded.name
        named = "-".join([base.name, *(f"{key.rpartition('.')[2]}-{_in_a_name(value)}" for key, value in setting)])
        loops.append(Loop(loaded, run_dir=base.with_name(named), progress=progress))
    places = [loop.run_dir.path for loop in loops]
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"--sweep: two runs would share {shortest(twice[0])}; give values whose last parts differ")
    ends: list[tuple[Path, RunResult | str]] = []
    for loop in loops:
        progress.say(f"\n{shortest(loop.run_dir.path)}")
        try:
            ends.append((loop.run_dir.path, loop.run(rounds=rounds, wait=wait)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            ends.append((loop.run_dir.path, str(error)))
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(_table(ends))
    if any(isinstance(end, str) for _, end in ends):
        raise typer.Exit(2)


def _values(sweep: str) -> list[tuple[str, str]]:
    """`seed=0,1` -> [("seed", "0"), ("seed", "1")]."""
    key, separator, text = sweep.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not separator or not key.strip() or not all(values):
        raise UserError(f"--sweep {sweep}: write KEY=VALUE,VALUE, such as --sweep seed=0,1,2")
    return [(key.strip(), value) for value in values]


def _in_a_name(value: str) -> str:
    """Of a path or a hub id its last part."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in value.rstrip("/").rpartition("/")[2])


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
