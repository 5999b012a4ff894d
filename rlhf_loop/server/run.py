"""Starting the service: what it serves, whether it may listen where it is told to, and what to open in a browser."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import uvicorn

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import private
from rlhf_loop.files.store_address import names_project
from rlhf_loop.recipe.rules_of_memory import NO_BITSANDBYTES, lacks_bitsandbytes
from rlhf_loop.records import Artifact
from rlhf_loop.runs import open_run
from rlhf_loop.server.app import create_app
from rlhf_loop.server.chat.engine import Engine
from rlhf_loop.server.chat.policies import Policies
from rlhf_loop.server.chat.policy_process import OwnProcess
from rlhf_loop.server.chat.upstream import BACK_OFF, KEY_VARIABLE, Upstream
from rlhf_loop.server.logs import to_stderr
from rlhf_loop.server.pages.annotation import prepare
from rlhf_loop.server.service import Service

GRACE_SECONDS = 30
"""How long requests may take to end after the service was told to."""

KEEP_SECONDS = 75
"""How long an idle connection is kept: longer than clients and proxies keep theirs (5 and 60), so that the service
never closes one on which a request is on its way."""


def start(
    run: Path | None,
    *,
    store: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    chat: bool = True,
    upstream: str | None = None,
    log_texts: bool = False,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serves a run, or a store alone, until it is told to stop. Raises `UserError` where it may not or cannot.

    `trusted_proxies`: addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; all others'
    say nothing about where a request comes from.
    """
    for proxy in trusted_proxies:
        _check_network(proxy)
    known = open_run(run) if run is not None else None
    if run is not None:
        private.tighten(run)
    url = known.store_url if known is not None else str(store)
    with Store.open(url, create=known is not None or ("://" in url and not names_project(url))) as opened:
        local = is_loopback(host)
        any_token = tokens.any_made(opened)
        if not local and not any_token:
            raise UserError(
                f"{host} can be reached from other machines, and no token was made: make one first with `rlhf-loop "
                f"token create YOUR_NAME --role admin --store {run or store}`, or leave out --host"
            )
        service = Service(
            store=opened,
            recipe=known.recipe if known is not None else None,
            run_dir=run,
            open_access=local and not any_token,
            log_texts=log_texts,
        )
        if chat:
            set_up_chat(service, upstream)
        else:
            service.chat_off = "this service was started with --no-chat"
        # what draws the dashboard, which takes a while
        threading.Thread(target=import_module, args=["rlhf_loop.report.charts"], daemon=True).start()
        listener = _listen(host, port)
        to_stderr()
        print("\n".join([*prepare(service), *greeting(service, host, port)]), flush=True)
        uvicorn.Server(config(service, trusted_proxies)).run(sockets=[listener])


def config(service: Service, trusted_proxies: Sequence[str] = ()) -> uvicorn.Config:
    """How the service is run."""
    return uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),  # uvicorn alone would believe whoever connects from this machine
        forwarded_allow_ips=list(trusted_proxies),
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_SECONDS,
    )


def set_up_chat(service: Service, upstream: str | None) -> None:
    """Gives the service its policies, or the reason why it has none."""
    store, recipe, run_dir = service.store, service.recipe, service.run_dir

    known = open_run(run_dir) if run_dir is not None else None

    def look() -> Artifact | None:
        id = known.promoted_id(store) if known is not None else store.promoted_id()
        return None if id is None else store.artifacts(ids=[id], with_feedback=False)[0]

    async def promoted() -> Artifact | None:
        found = await asyncio.to_thread(look)
        if found is None and upstream is not None:
            return Artifact(id="upstream", kind="policy", path=upstream, round=0)
        return found

    if upstream is not None:
        url, key = upstream, os.environ.get(KEY_VARIABLE)
        service.policies = Policies(promoted, lambda policy: Upstream(url, policy.id, key), back_off=BACK_OFF)
        return
    if recipe is None or known is None:
        service.chat_off = "a store alone has no policy to serve; serve a run, or give --upstream URL"
        return
    if known.promoted_id(store) is None:
        service.chat_off = "the run has no policy yet; `rlhf-loop run` makes its first round, then start this again"
        return
    if lacks_bitsandbytes(recipe.policy):
        service.chat_off = NO_BITSANDBYTES
        return

    def make(policy: Artifact) -> Engine:
        settings = recipe.policy.model_dump(mode="json")
        return OwnProcess(policy.id, known.weights(policy), settings, recipe.generation.batch_tokens)

    service.policies = Policies(promoted, make)


def greeting(service: Service, host: str, port: int) -> list[str]:
    """What to open, and who may."""
    shown = "localhost" if host in ("127.0.0.1", "::1", "localhost") else host
    base = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    where = service.run_dir.name if service.run_dir is not None else service.store.name
    chat = f"{base}/v1 (OpenAI-compatible; model `promoted`)" if service.policies is not None else service.chat_off
    if service.open_access:
        access = "open to everybody on this machine, for no token was made (rlhf-loop token create)"
    else:
        roles = {token.role for token in tokens.listed(service.store) if token.revoked_at is None}
        access = "by token (rlhf-loop token list)"
        if "admin" not in roles:
            who = "see the dashboard" if "annotator" in roles else "open the pages"
            access += f"; nobody can {who} before `rlhf-loop token create YOUR_NAME --role admin`"
    return [
        f"serving {where}. Ctrl-C stops it.",
        f"  annotate   {base}/annotate",
        f"  dashboard  {base}/",
        f"  chat       {chat}",
        f"  access     {access}",
    ]


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise UserError(
            f"--trusted-proxy {text}: {error}; give the address of a proxy, or its network, such as 10.0.0.0/8"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port now, so that a port in use is told before anything else."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
    return listener
