"""A service in memory for the tests, and a policy that needs no model."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.testclient import TestClient

from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Artifact
from rlhf_loop.server.app import create_app
from rlhf_loop.server.chat.engine import Ask, Delta, Event, PolicyLost, PolicyRefused, Started
from rlhf_loop.server.chat.policies import Policies
from rlhf_loop.server.service import Service

HERE = "http://localhost"


class Parrot:
    """Answers with the last message's words, one by one, and its own name."""

    def __init__(self, policy_id: str = "base", seconds: float = 0.0):
        self.policy_id, self.alive, self.answering, self.seconds = policy_id, False, 0, seconds
        self.asked: list[Ask] = []
        self.die_after: int | None = None  # words

    async def start(self) -> None:
        self.alive = True

    async def stream(self, ask: Ask) -> AsyncIterator[Event]:
        self.asked.append(ask)
        if not self.alive:
            raise PolicyLost("the parrot is dead")
        if "refuse" in ask.messages[-1]["content"]:
            raise PolicyRefused("the parrot will not")
        yield Started(policy_id=self.policy_id, prompt_tokens=3)
        words = ask.messages[-1]["content"].split()[: ask.max_tokens]
        for number, word in enumerate(words):
            if self.die_after == number:
                self.alive = False
                raise PolicyLost("the parrot died")
            await asyncio.sleep(self.seconds)
            for choice in range(ask.n):
                yield Delta(choice=choice, text=f"{word} ")
        for choice in range(ask.n):
            yield Delta(choice=choice, text=f"says {self.policy_id} {choice}")
            yield Delta(choice=choice, finish="stop", tokens=len(words) + 3)

    async def close(self) -> None:
        self.alive = False


def promoted_policy(store: Store) -> Artifact | None:
    """The policy that was promoted last."""
    return next((policy for policy in store.artifacts(kind="policy") if policy.promoted), None)


def with_chat(service: Service, **parrot: Any) -> list[Parrot]:
    """Gives the service parrots for policies; the list holds those that were started."""
    made: list[Parrot] = []

    async def promoted() -> Artifact | None:
        return await asyncio.to_thread(promoted_policy, service.store)

    def make(policy: Artifact) -> Parrot:
        made.append(Parrot(policy.id, **parrot))
        return made[-1]

    if service.store.promoted_id() is None:
        service.store.add_artifact(Artifact(id="base", kind="policy", path="base", round=0))
        service.store.promote("base")
    service.policies = Policies(promoted, make, poll_seconds=0.05, wait_seconds=5)
    return made


def service(store: Store, **values: Any) -> Service:
    return Service(store=store, **{"open_access": True, **values})


def client(service: Service, secret: str | None = None, **values: Any) -> TestClient:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return TestClient(create_app(service), base_url=HERE, headers=headers, **values)


@contextmanager
def on_a_socket(app: Any) -> Iterator[str]:
    """A service, or an application, that listens on this machine; gives the URL of its API."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # whoever connects before the thread has begun waits
    asgi = create_app(app) if isinstance(app, Service) else app
    server = uvicorn.Server(uvicorn.Config(asgi, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


def token(store: Store, role: str, name: str | None = None) -> str:
    return tokens.create(store, role, name or role)[1]  # type: ignore[arg-type]


def file_store(folder: Path) -> Store:
    return Store.open(folder / "feedback.db")
