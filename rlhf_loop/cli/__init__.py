"""The command line: each command only calls what Python code can call too.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli import feedback, policy, privacy, serve, tokens, watch
from rlhf_loop.cli.shared import AsJson, RunFolder, existing_run, shortest
from rlhf_loop.errors import UserError

app = typer.Typer(
    name="rlhf-loop",
    help="The feedback loop, whole: preferences and critiques train a reward model, which drives policy updates, "
    "round after round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(feedback.app, name="feedback")
app.add_typer(policy.app, name="policy")
app.add_typer(tokens.app, name="token")
app.add_typer(privacy.app, name="user")
app.command()(serve.serve)
app.command()(watch.watch)


def main() -> None:
    """Entry point: errors that a user can mend are printed without a traceback, with exit code 2."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0:
        _follow()
        return
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds in all (default: the recipe's).")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    wait: Annotated[bool, typer.Option(help="Stop while people have questions to answer.")] = True,
) -> None:
    """Run a recipe, or go on with a run that stopped."""
    from rlhf_loop.loop import Loop
    from rlhf_loop.progress import RunProgress
    from rlhf_loop.recipe import Recipe

    progress = RunProgress()
    loop = Loop(Recipe.load(recipe, overrides or []), run_dir=run_dir, progress=progress)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        progress.say("one process takes part (on CPU, Accelerate starts one; `torchrun --nproc_per_node N` starts N)")
    try:
        result = loop.run(rounds=rounds, wait=wait)
    except KeyboardInterrupt:
        print("\nstopped. Nothing is lost: type the same command again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    place = shortest(result.run_dir)
    if result.waiting_for_labels:
        progress.say(
            f"\nwaiting for labels: {result.waiting_for_labels} questions are open. To answer them on a page:\n"
            f"  {_command()} serve {place}\n"
            "or in a file, where you fill in each `winner` (a, b, tie or both_bad):\n"
            f"  {_command()} feedback export questions.jsonl --format questions --store {place}\n"
            f"  {_command()} feedback import questions.jsonl --store {place}\n"
            "then type the same command again."
        )
    elif result.complete_rounds:
        progress.say(f"\nTo chat with the policy and judge its answers yourself: {_command()} serve {place}")
    progress.say(f"\n{result.complete_rounds} rounds complete. Report: {shortest(result.report)}")
    own = recipe.parent / "own_pairs.yaml"
    if own.exists() and own != recipe:
        progress.say(
            'With your own feedback, a line {"prompt", "chosen", "rejected"} for each pair:\n'
            f"  {_command()} run {own} feedback.imports.0.path=YOUR_PAIRS.jsonl"
        )


@app.command()
def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Where a run stands: win-rate, decision and timings a round."""
    from rlhf_loop.report.status import render, status
    from rlhf_loop.run_dir import RunDir

    state = status(RunDir(existing_run(run)))
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        from rich.console import Console

        Console().print(render(state))


@app.command()
def report(run: RunFolder) -> None:
    """Write the run's report again: one offline HTML file."""
    from rlhf_loop.report import write_report
    from rlhf_loop.run_dir import RunDir

    print(write_report(RunDir(existing_run(run))))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What works on this machine: Python, memory, accelerators, disk, versions."""
    from rlhf_loop.doctor import examine, render

    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        print(render(findings))
    if any(finding["state"] == "fails" for finding in findings):
        raise typer.Exit(1)


@app.command()
def stage(
    arguments: Annotated[
        Path, typer.Argument(help="A stage's arguments, such as RUN/round_001/update.arguments.json.")
    ],
) -> None:
    """Run one stage alone, from files to files (what the loop does for each step that needs torch)."""
    from rlhf_loop.progress import RunProgress
    from rlhf_loop.run_dir import StageArguments
    from rlhf_loop.stages import run_stage

    if not arguments.exists():
        raise UserError(f"no stage arguments at {arguments}; the loop writes them as RUN/round_NNN/STEP.arguments.json")
    with RunProgress().step(StageArguments.read(arguments).stage) as progress:
        run_stage(arguments, progress)
    print(StageArguments.read(arguments).output)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to put them.")] = Path(),
) -> None:
    """Lay out copies of the recipes and reward models that ship."""
    from rlhf_loop.share import lay_out

    for path in lay_out(folder):
        print(path)
    print(f"Next: rlhf-loop run {folder / 'recipes' / 'quickstart.yaml'}")


def _follow() -> None:
    """Ranks but 0 of a launched run: take part in stages until rank 0 is done. Other commands run on rank 0 alone."""
    if "run" in sys.argv[1:2]:
        from rlhf_loop.launch.ranks import follow

        follow()


def _command() -> str:
    """How this program was called: .venv/bin/rlhf-loop, rlhf-loop, or python -m rlhf_loop."""
    program = Path(sys.argv[0])
    return f"{sys.executable} -m rlhf_loop" if program.name == "__main__.py" else shortest(program)
