"""The command line: each command only calls what Python code can call too.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_loop.errors import UserError

app = typer.Typer(
    name="rlhf-loop",
    help="The feedback loop, whole: preferences and critiques train a reward model, which drives policy updates, "
    "round after round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
feedback_app = typer.Typer(help="Bring feedback in and out, check it, count it.", no_args_is_help=True)
policy_app = typer.Typer(help="The policies of a run: list, promote, roll back, export.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")
app.add_typer(policy_app, name="policy")

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
StoreOption = Annotated[
    str, typer.Option("--store", help="Store to work on: a URL, an SQLite file, or a run's folder.", metavar="STORE")
]


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
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in all (default: the recipe's).")] = None,
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
    place = _shortest(result.run_dir)
    if result.waiting_for_labels:
        progress.say(
            f"\nwaiting for labels: {result.waiting_for_labels} questions are open. To answer them:\n"
            f"  rlhf-loop feedback export questions.jsonl --format questions --store {place}\n"
            f"  (fill in each `winner`: a, b, tie or both_bad)\n"
            f"  rlhf-loop feedback import questions.jsonl --store {place}\n"
            "then type the same command again."
        )
    progress.say(f"\n{result.complete_rounds} rounds complete. Report: {_shortest(result.report)}")
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

    state = status(RunDir(_existing_run(run)))
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

    print(write_report(RunDir(_existing_run(run))))


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


@feedback_app.command("import")
def feedback_import(
    path: Annotated[Path, typer.Argument(help="File of feedback: JSONL, CSV or Parquet.")],
    store: StoreOption,
    format: Annotated[str, typer.Option(help="A format's name, or auto.")] = "auto",
    annotator: Annotated[str | None, typer.Option(help="Who gave feedback that names nobody (a pseudonym).")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring feedback into a store; rows that cannot be used are quarantined with file and line."""
    from rlhf_loop.feedback.importers import read, save
    from rlhf_loop.feedback.store import Store

    result = read(path, format, annotator)
    with Store.open(_store_url(store)) as opened:
        new = save(opened, result)
    if as_json:
        print(json.dumps({**new, "refused": len(result.refused)}))
        return
    print("\n".join(result.lines()))
    print("new: " + (", ".join(f"{count} {name}" for name, count in new.items() if count) or "nothing"))


@feedback_app.command("export")
def feedback_export(
    path: Annotated[Path, typer.Argument(help="File to write.")],
    store: StoreOption,
    format: Annotated[str, typer.Option(help="native, trl, trl-unpaired or questions.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Write feedback to a file that other tools read."""
    from rlhf_loop.feedback.export import export
    from rlhf_loop.feedback.store import Store

    with Store.open(_store_url(store), create=False) as opened:
        summary = export(opened, path, format)
    print(json.dumps(summary) if as_json else f"{path}: " + ", ".join(f"{v} {k}" for k, v in summary.items()))


@feedback_app.command("check")
def feedback_check(store: StoreOption, as_json: AsJson = False) -> None:
    """What validation says of the feedback, and what is in quarantine and why."""
    from rlhf_loop.feedback.store import Store
    from rlhf_loop.feedback.validation import validate
    from rlhf_loop.recipe import Validation

    with Store.open(_store_url(store), create=False) as opened:
        settings = _validation_settings(store) or Validation()
        feedback = opened.feedback()
        completions = {c.id: c for c in opened.completions()}
        result = validate(feedback, completions, {p.id: p for p in opened.prompts()}, settings)
        quarantined = opened.quarantined()
    if as_json:
        print(json.dumps({**result.to_dict(), "quarantine": len(quarantined)}, indent=2))
        return
    for line in result.lines():
        print(line)
    for row in quarantined[:20]:
        print(f"quarantined {row.file}:{row.line}: {row.reason}")
    if len(quarantined) > 20:
        print(f"... and {len(quarantined) - 20} more")


@feedback_app.command("stats")
def feedback_stats(store: StoreOption, as_json: AsJson = False) -> None:
    """Counts, agreement and biases of the feedback in a store."""
    from rlhf_loop.feedback.stats import lines, stats
    from rlhf_loop.feedback.store import Store

    with Store.open(_store_url(store), create=False) as opened:
        numbers = stats(opened)
    print(json.dumps(numbers, indent=2) if as_json else "\n".join(lines(numbers)))


@policy_app.command("list")
def policy_list(run: RunFolder, as_json: AsJson = False) -> None:
    """The policies of a run, the promoted one marked."""
    from rlhf_loop import policies

    rows = policies.listed(_existing_run(run))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{'*' if row['promoted'] else ' '} {row['id']:<24} round {row['round']:<3} {row['path']}")


@policy_app.command("promote")
def policy_promote(run: RunFolder, policy: Annotated[str, typer.Argument(help="Id of a policy.")]) -> None:
    """Make a policy the promoted one: the next round starts from it."""
    from rlhf_loop import policies

    policies.promote(_existing_run(run), policy)
    print(f"promoted {policy}")


@policy_app.command("rollback")
def policy_rollback(run: RunFolder) -> None:
    """Promote the policy that was promoted before the current one."""
    from rlhf_loop import policies

    print(f"promoted {policies.rollback(_existing_run(run))}")


@policy_app.command("export")
def policy_export(
    run: RunFolder,
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    policy: Annotated[str | None, typer.Option(help="Id of a policy (default: the promoted one).")] = None,
    form: Annotated[str, typer.Option("--form", help="merged (plain float32 weights) or adapter.")] = "merged",
) -> None:
    """Write a policy with a model card and its lineage, ready for transformers and vLLM."""
    from rlhf_loop import policies

    print(policies.export(_existing_run(run), output, policy, form))


def _follow() -> None:
    """Ranks but 0 of a launched run: take part in stages until rank 0 is done. Other commands run on rank 0 alone."""
    if "run" in sys.argv[1:2]:
        from rlhf_loop.launch.ranks import follow

        follow()


def _existing_run(path: Path) -> Path:
    if not (path / "recipe.yaml").exists():
        raise UserError(f"{path} is no run: it has no recipe.yaml. Runs are made by `rlhf-loop run RECIPE`")
    return path.resolve()


def _store_url(store: str) -> str:
    """A URL or file as it is; a run's folder stands for the run's store."""
    folder = Path(store)
    if not folder.is_dir():
        return store
    from rlhf_loop.policies import open_loop

    return open_loop(_existing_run(folder)).store_url


def _validation_settings(store: str) -> Any:
    if not Path(store).is_dir():
        return None
    from rlhf_loop.policies import open_loop

    return open_loop(_existing_run(Path(store))).recipe.feedback.validation


def _command() -> str:
    """How this program was called: .venv/bin/rlhf-loop, rlhf-loop, or python -m rlhf_loop."""
    program = Path(sys.argv[0])
    return f"{sys.executable} -m rlhf_loop" if program.name == "__main__.py" else _shortest(program)


def _shortest(path: Path) -> str:
    """Relative to the working folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
