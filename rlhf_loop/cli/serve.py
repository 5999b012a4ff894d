"""`rlhf-loop serve`: the service for people and applications."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import existing_run
from rlhf_loop.errors import UserError


def serve(
    run: Annotated[Path | None, typer.Argument(help="Folder of the run.", metavar="[RUN]")] = None,
    store: Annotated[str | None, typer.Option(help="A store alone, without a run: a URL or an SQLite file.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Load the promoted policy and answer chats.")] = True,
    upstream: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server that answers instead, such as http://HOST:8001/v1.")
    ] = None,
    log_texts: Annotated[bool, typer.Option(help="Log what is asked and answered too.")] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a proxy that says truly for whom it asks (may be repeated)."),
    ] = None,
) -> None:
    """Serve a run: an annotation page, a dashboard, a chat endpoint, and feedback on its answers."""
    if (run is None) == (store is None):
        raise UserError("name a run, as in `rlhf-loop serve runs/quickstart`, or a store with --store")
    try:
        from rlhf_loop.server.run import start
    except ModuleNotFoundError as error:
        raise UserError(f"the service needs {error.name}; install it: pip install 'rlhf-loop[server]'") from None
    start(
        existing_run(run) if run is not None else None,
        store=store,
        host=host,
        port=port,
        chat=chat,
        upstream=upstream,
        log_texts=log_texts,
        trusted_proxies=trusted_proxy or (),
    )
