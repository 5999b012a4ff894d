"""A server with OpenAI's chat completions that answers as a test wants, slowly, wrongly, in halves, or not at all.

python tests/samples/endpoint.py --latency 0.1     # prints its URL
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

Say = Callable[[dict[str, Any]], Any]
"""What the server says to a request: a text, a whole body (bytes: as they are), or a `Fault`."""


class Fault:
    """A way to fail: an HTTP status, or `half` (the connection is cut), `never`, `malformed`, `empty`."""

    def __init__(self, how: int | str, headers: dict[str, str] | None = None, text: str = "broken"):
        self.how, self.headers, self.text = how, headers or {}, text


class FakeEndpoint:
    """An ASGI application; keeps what it was asked."""

    def __init__(self, say: Say, latency: float = 0.0, usage: tuple[int, int] | None = (11, 7)):
        self.say, self.latency, self.usage = say, latency, usage
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] == "GET":  # how much was asked, for a process elsewhere
            counts = {"asked": len(self.asked), "most_at_once": self.most_at_once}
            await respond(send, 200, json.dumps(counts).encode())
            return
        request = json.loads(body)
        self.asked.append(request)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(self.latency)
            await self._answer(self.say(request), receive, send)
        finally:
            self.at_once -= 1

    async def _answer(self, said: Any, receive: Any, send: Any) -> None:
        if not isinstance(said, Fault):
            body = said if isinstance(said, (dict, bytes)) else completion(said, self.usage)
            await respond(send, 200, body if isinstance(body, bytes) else json.dumps(body).encode())
        elif said.how == "never":
            while (await receive())["type"] != "http.disconnect":
                pass
        elif said.how == "half":
            await respond(send, 200, b'{"choices": [{"mess', length=4000)
        elif said.how == "malformed":
            await respond(send, 200, b'{"choices": [{"message": {"content": "A"')
        elif said.how == "empty":
            await respond(send, 200, json.dumps({"choices": []}).encode())
        else:
            error = json.dumps({"error": {"message": said.text}}).encode()
            await respond(send, int(said.how), error, said.headers)


def completion(text: str | None, usage: tuple[int, int] | None = (11, 7), **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    body: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fake"}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


async def respond(
    send: Any, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
) -> None:
    named = {"content-type": "application/json", "content-length": str(length or len(body)), **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in named.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


@contextmanager
def running(say: Say, **settings: Any) -> Iterator[tuple[FakeEndpoint, str]]:
    """The server on this machine, in a thread, and its URL."""
    from samples.server import on_a_socket

    server = FakeEndpoint(say, **settings)
    with on_a_socket(server) as url:
        yield server, url


def texts_of(request: dict[str, Any]) -> dict[str, str]:
    """The texts between marks in the last message of a request, by name: request, answer A, answer B."""
    said = request["messages"][-1]["content"]
    return dict(re.findall(r"<<(\w+) [0-9a-f]+>>\n(.*?)\n<</\1 [0-9a-f]+>>", said, re.DOTALL))


def prefers_shorter(request: dict[str, Any]) -> str:
    """A judge that prefers the answer with fewer characters."""
    texts = texts_of(request)
    a, b = len(texts["A"]), len(texts["B"])
    better = "tie" if a == b else "A" if a < b else "B"
    wanted = {"critique_of_A": f"It has {a} characters.", "critique_of_B": f"It has {b} characters."}
    return json.dumps({**(wanted if "critique_of_A" in str(request["messages"]) else {}), "better": better})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.1)
    latency = parser.parse_args().latency
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    app = FakeEndpoint(prefers_shorter, latency=latency)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])
