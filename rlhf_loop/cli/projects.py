"""`rlhf-loop project ...`: the projects of a store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, store_url
from rlhf_loop.errors import UserError

app = typer.Typer(help="The projects of a store.", no_args_is_help=True)


@app.command("quota")
def project_quota(
    store: Annotated[
        str, typer.Argument(help="A URL or SQLite file, ?project=NAME behind it, or a run's folder.", metavar="STORE")
    ],
    answers: Annotated[str | None, typer.Option(help="Answers that the service may store a day; or none.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens in them; or none.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a project's service may use in a day, and what it used today (UTC); options set it."""
    from rlhf_loop.feedback.store import quotas
    from rlhf_loop.feedback.store.store import Store

    changes = {
        kind: _amount(kind, given) for kind, given in (("answers", answers), ("tokens", tokens)) if given is not None
    }
    with Store.open(store_url(store), create=False) as opened:
        if changes:
            quotas.set_quota(opened, changes)
        usage = quotas.usage(opened)
    print(json.dumps(asdict(usage), indent=2) if as_json else f"today: {usage.in_words()}")


def _amount(kind: str, given: str) -> int | None:
    if given == "none":
        return None
    if not given.isdecimal():
        raise UserError(f"--{kind} {given!r}: give a number, or none for no limit")
    return int(given)


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
