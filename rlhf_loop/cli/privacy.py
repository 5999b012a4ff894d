"""`rlhf-loop user ...`: what is kept of the users of applications."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, StoreOption, existing_run, shortest, store_url

app = typer.Typer(help="What is kept of the users of applications: delete it.", no_args_is_help=True)


@app.command("delete")
def user_delete(
    user: Annotated[str, typer.Argument(help="The application's name for the user, or an annotator's name.")],
    store: StoreOption,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a run whose files hold it too (may be repeated; that of --store is one)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete what a user asked, was answered and said, in the store and the runs; list the models that learned it."""
    from rlhf_loop.copies import pushed_to
    from rlhf_loop.feedback.privacy.deletion import delete_user
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.report import write_report

    named = [Path(store)] if Path(store).is_dir() else []
    runs = list(dict.fromkeys(existing_run(folder) for folder in [*named, *(run or [])]))
    with Store.open(store_url(store), create=False) as opened:
        report = delete_user(opened, user, runs, rewrite_report=write_report)
    copies = {str(folder): places for folder in runs if (places := pushed_to(folder))}
    if as_json:
        print(json.dumps({**report.to_dict(), "copies": copies}, indent=2))
    else:
        print("\n".join(report.lines()))
        for folder, places in copies.items():
            for place in places:
                print(f"a copy was pushed: `rlhf-loop push {shortest(Path(folder))} {place}` takes it out of there too")
    if report.left is not None:
        raise typer.Exit(1)
