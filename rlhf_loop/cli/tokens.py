"""`rlhf-loop token ...`: who may call the service."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, StoreOption, new_store, store_url

app = typer.Typer(help="Who may call the service: make, list and revoke tokens.", no_args_is_help=True)


@app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Whose it is; of an annotator, the name in their feedback.")],
    store: StoreOption,
    role: Annotated[str, typer.Option(help="app, annotator or admin.")] = "app",
) -> None:
    """Make a token. It is shown this once, and kept as a hash."""
    import sys

    from rlhf_loop.feedback.store import tokens
    from rlhf_loop.feedback.store.store import Store

    with Store.open(store_url(store)) as opened:
        if opened.is_new:
            print(f"{new_store(opened, store)}, without a run or feedback", file=sys.stderr)
        token, secret = tokens.create(opened, role, name)  # type: ignore[arg-type]
    print(f"{token.id}: role {role}, for {name}. The token, shown this once:", file=sys.stderr)
    print(secret)


@app.command("list")
def token_list(store: StoreOption, as_json: AsJson = False) -> None:
    """The tokens there are and were; never the tokens themselves."""
    from rlhf_loop.feedback.store import tokens
    from rlhf_loop.feedback.store.store import Store

    with Store.open(store_url(store), create=False) as opened:
        rows = tokens.listed(opened)
    if as_json:
        print(json.dumps([asdict(token) for token in rows], indent=2))
        return
    for token in rows:
        state = "" if token.revoked_at is None else f"  revoked {_minute(token.revoked_at)}"
        print(f"{token.id}  {token.role:<9}  made {_minute(token.created_at)}  {token.name}{state}")
    if not rows:
        print("no tokens; `rlhf-loop token create` makes one")


@app.command("revoke")
def token_revoke(id: Annotated[str, typer.Argument(help="Id of a token, from the list.")], store: StoreOption) -> None:
    """Make a token worthless, at once."""
    from rlhf_loop.feedback.store import tokens
    from rlhf_loop.feedback.store.store import Store

    with Store.open(store_url(store), create=False) as opened:
        token = tokens.revoke(opened, id)
    print(f"revoked {token.id}, role {token.role}, of {token.name}")


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
