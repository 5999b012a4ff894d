"""`rlhf-loop project ...`: the projects of a store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, store_url

app = typer.Typer(help="The projects of a store.", no_args_is_help=True)


@app.command("list")
def project_list(
    store: Annotated[str, typer.Argument(help="A URL, an SQLite file, or a run's folder.", metavar="STORE")],
    as_json: AsJson = False,
) -> None:
    """The projects of a store, with what is in them; one is made by what first writes to it."""
    from rlhf_loop.feedback.store.projects import listed

    rows = listed(store_url(store))
    if as_json:
        print(json.dumps([asdict(project) for project in rows], indent=2))
        return
    for row in rows:
        print(
            f"{row.name:<20}  {row.prompts} prompts, {row.completions} completions, {row.feedback} pieces of feedback, "
            f"{row.policies} policies"
        )
    if not rows:
        print("no projects: the store is empty")
