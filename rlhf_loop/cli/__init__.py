"""The command line: each command only calls what Python code can call too.

Nothing heavy is imported before a command needs it, so `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli import compare, copies, feedback, plan, policy, privacy, projects, run, serve, submit, tokens, watch
from rlhf_loop.cli.shared import AsJson, RunFolder, existing_run
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
app.add_typer(projects.app, name="project")
app.add_typer(privacy.app, name="user")
app.command()(run.run)
app.command()(submit.submit)
app.command()(plan.plan)
app.command()(compare.compare)
app.command()(copies.push)
app.command()(copies.fetch)
app.command()(serve.serve)
app.command()(watch.watch)


def main() -> None:
    """Entry point: errors that a user can mend are printed without a traceback, with exit code 2."""
    sys.argv[1:] = map(with_home, sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0:
        _follow()
        return
    try:
        app()
    except (UserError, OSError) as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        sys.exit(2)


def with_home(word: str) -> str:
    """A typed word with `~/` as the home directory, also where shells leave it: `--run-dir=~/runs/mine`."""
    option, found, rest = word.partition("=") if re.match(r"--[a-z-]+=~/", word) else ("", "", word)
    return f"{option}{found}{os.path.expanduser(rest)}" if rest.startswith("~/") else word


@app.command()
def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Where a run stands: win-rate, decision and timings a round; the jobs of a cluster that work on it."""
    from rlhf_loop.report.status import jobs, render, shown_jobs, status, what_next
    from rlhf_loop.run_dir import RunDir

    if not (run / "recipe.yaml").exists() and (submitted := jobs(RunDir(run))):  # it waits for its first node
        print(json.dumps({"jobs": submitted}, indent=2) if as_json else "\n".join(shown_jobs(submitted)))
        return
    state = status(RunDir(existing_run(run)))
    if as_json:
        print(json.dumps(state, indent=2))
    else:
        from rich.console import Console

        Console().print(render(state))
        print(what_next(state))


@app.command()
def report(
    run: RunFolder,
    output: Annotated[Path | None, typer.Option(help="File to write (default: report.html of the run).")] = None,
) -> None:
    """Write the run's report again: one offline HTML file."""
    from rlhf_loop.report import write_report
    from rlhf_loop.run_dir import RunDir

    print(write_report(RunDir(existing_run(run)), output=output))


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
    from rlhf_loop.stages import run_stage
    from rlhf_loop.stages.arguments import StageArguments

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
    from rlhf_loop.cli.share import lay_out

    for path in lay_out(folder):
        print(path)
    print(f"Next: rlhf-loop run {folder / 'recipes' / 'quickstart.yaml'}")


def _explained(error: UserError | OSError) -> UserError:
    """A file or folder that can be neither read nor made is the user's to mend; raises any other error."""
    if isinstance(error, UserError):
        return error
    from rlhf_loop.files import explain_os_error

    if error.errno not in _MENDABLE or not isinstance(error.filename, str):
        raise error
    return explain_os_error(error, Path(error.filename))


_MENDABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR),  # a file in place of a folder
}


def _follow() -> None:
    """Ranks but 0 of a launched run: take part in stages until rank 0 is done. Other commands run on rank 0 alone."""
    if "run" in sys.argv[1:2]:
        from rlhf_loop.launch.ranks import follow
        from rlhf_loop.processes import terminable

        with terminable():
            try:
                follow()
            except KeyboardInterrupt:  # rank 0 says it
                sys.exit(130)
