"""`rlhf-loop push` and `rlhf-loop fetch`: copies of a run elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_loop.cli.shared import RunFolder, existing_run, shortest
from rlhf_loop.errors import printable

if TYPE_CHECKING:
    from rlhf_loop.copies import Copied

Url = Annotated[
    str,
    typer.Argument(
        help="hf://OWNER/NAME, hf://datasets/OWNER/NAME, s3://BUCKET/FOLDER or whatever else fsspec knows; a folder.",
        metavar="URL",
    ),
]


def push(
    run: RunFolder,
    url: Url,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read the repository on the hub.")] = False,
) -> None:
    """Copy the complete rounds of a run elsewhere, or what is new of them."""
    from rlhf_loop import copies
    from rlhf_loop.processes import terminable
    from rlhf_loop.progress import RunProgress

    with terminable(), RunProgress().step("push") as progress:  # copies of the run's databases go with it
        made = copies.push(existing_run(run), url, public, progress)
    _say(made)
    print(f"to have it elsewhere: rlhf-loop fetch {made.place} RUN")


def fetch(
    url: Url,
    run: Annotated[Path, typer.Argument(help="Folder to make, such as runs/mine.", metavar="RUN")],
    if_any: Annotated[
        bool, typer.Option("--if-any", help="Do nothing where no run was pushed yet, for jobs that go on or begin.")
    ] = False,
) -> None:
    """Copy a run that was pushed into a new folder, to look at, serve or go on with."""
    from rlhf_loop import copies
    from rlhf_loop.processes import terminable
    from rlhf_loop.progress import RunProgress

    with terminable(), RunProgress().step("fetch") as progress:
        try:
            made = copies.fetch(url, run, progress)
        except copies.NothingThere:
            if not if_any:
                raise
            print("no round of a run was pushed there yet: nothing is fetched")
            return
    _say(made)
    print(f"where it stands: rlhf-loop status {shortest(run.resolve())}")


def _say(made: Copied) -> None:
    rounds = f"rounds {made.rounds[0]} to {made.rounds[-1]}" if len(made.rounds) > 1 else f"round {made.rounds[0]}"
    print(f"{made.place} holds {rounds}; copied now: {made.files} files, {made.bytes / 2**20:,.1f} MiB")
    if made.store is not None:
        print(f"its feedback is not among them: it is in {printable(made.store)}")
