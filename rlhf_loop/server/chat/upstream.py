"""A policy that another OpenAI-compatible server answers for, such as vLLM.

Where that server has a model named by the promoted policy's id (vLLM: `--served-model-name ID`), it is asked for that
one and its answers are the policy's. Otherwise its first model answers, and its answers are kept as those of
`upstream:MODEL`, so that nobody takes them for the policy's.

What an application asks beyond what this service knows (tools, structured output, ...) is passed on as it came, and so
is what the other server says beyond text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import httpx_sse

from rlhf_loop.server.chat.engine import Ask, Delta, Event, Noted, PolicyLost, PolicyRefused, Started

KEY_VARIABLE = "RLHF_LOOP_UPSTREAM_KEY"
"""The environment variable with the key that the other server wants, if it does."""

BACK_OFF = (0.5, 2.0)
"""Seconds before a server that is away is asked again: to ask costs nothing."""

WHOLE = ("stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn", "stop_sequence")
"""Reasons to end of answers that are whole. Others, such as `length` and `content_filter`, cut an answer off."""

LIST_SECONDS = 5.0
"""How often the other server is asked which models it has; one that does not say is away."""

_NOT_OF_THE_ANSWER = ("id", "object", "created", "model", "choices")  # these are ours


class Upstream:
    """The other server, on behalf of one promoted policy."""

    def __init__(
        self, url: str, policy_id: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ):
        self.policy_id = policy_id
        self.alive = False
        self.answering = 0
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(600, connect=10),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            transport=transport,
        )
        self._models: list[str] = []
        self._asking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Asks which models there are, and goes on asking. Raises `PolicyLost` when the server does not say."""
        self._models = await self._list()
        self.alive = True
        self._asking = asyncio.create_task(self._keep_asking())

    async def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer bit by bit; all at once where `ask.stream` is off."""
        model = self.policy_id if self.policy_id in self._models else self._models[0]
        named = model if model == self.policy_id else f"upstream:{model}"
        tokens = [0] * ask.n
        ended = [False] * ask.n
        try:
            async with self._client.stream("POST", f"{self.url}/chat/completions", json=_body(ask, model)) as answer:
                if answer.status_code != 200:
                    raise _refusal(self.url, answer, await answer.aread())
                yield Started(policy_id=named, prompt_tokens=0)
                async for values in _values(answer):
                    if values is None:
                        for number in (n for n in range(ask.n) if tokens[n] and not ended[n]):
                            ended[number] = True  # not every server says why
                            yield Delta(choice=number, finish="stop", tokens=tokens[number])
                        break
                    if values.get("error"):
                        raise _failed(self.url, values["error"])
                    if fields := {k: v for k, v in values.items() if k not in _NOT_OF_THE_ANSWER and v is not None}:
                        yield Noted(fields=fields)
                    for choice in values.get("choices") or ():
                        number = choice.get("index") or 0
                        text = (choice.get("delta") or choice.get("message") or {}).get("content")
                        tokens[number] += bool(text)  # servers send a token at a time, more or less
                        reason = choice.get("finish_reason")
                        ended[number] = ended[number] or bool(reason)
                        yield Delta(
                            choice=number,
                            text=text if isinstance(text, str) else "",
                            finish=None if not reason else "stop" if reason in WHOLE else "length",
                            tokens=tokens[number],
                            raw=choice,
                        )
        except httpx.ConnectError as error:
            self.alive = False
            raise PolicyLost(f"{self.url} cannot be reached: {error}") from error
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise PolicyLost(f"{self.url} broke off: {error!r}") from error
        if any(ended) and not all(ended):
            raise PolicyRefused(
                f"n: {self.url} wrote {sum(ended)} of {ask.n} answers; ask for as many as it writes at once", param="n"
            )
        if not all(ended):
            raise PolicyLost(f"{self.url} broke off before the end of the answer")

    async def close(self) -> None:
        """Closes the connections."""
        self.alive = False
        if self._asking is not None:
            self._asking.cancel()
        await self._client.aclose()

    async def _keep_asking(self) -> None:
        """Follows which models there are, until the server does not say."""
        with suppress(PolicyLost):
            while True:
                await asyncio.sleep(LIST_SECONDS)
                self._models = await self._list()
        self.alive = False

    async def _list(self) -> list[str]:
        try:
            answer = await self._client.get(f"{self.url}/models", timeout=10)
            answer.raise_for_status()
            models = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise PolicyLost(f"{self.url}/models does not list models ({error}); check --upstream") from error
        if not models:
            raise PolicyLost(f"{self.url} serves no model; start one there")
        return models


def _body(ask: Ask, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": list(ask.messages),
        "n": ask.n,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "max_tokens": ask.max_tokens,
        "seed": ask.seed,
    }
    if ask.stop:
        body["stop"] = list(ask.stop)
    if ask.top_k:
        body["top_k"] = ask.top_k
    if "max_completion_tokens" in ask.more:
        del body["max_tokens"]
    body |= {**ask.more, "model": model, "stream": ask.stream}
    if ask.stream:
        body["stream_options"] = {"include_usage": True}
    return body


async def _values(answer: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """What the other server says: each event's JSON and None at the end, or the one JSON of an answer that comes whole.

    Raises `ValueError` for what is neither.
    """
    if "text/event-stream" not in answer.headers.get("content-type", ""):
        yield json.loads(await answer.aread())
        return
    async for event in httpx_sse.EventSource(answer).aiter_sse():
        if event.data == "[DONE]":
            yield None
        elif event.data:
            values = json.loads(event.data)
            yield {"error": values} if event.event == "error" and "error" not in values else values


def _refusal(url: str, answer: httpx.Response, body: bytes) -> PolicyLost | PolicyRefused:
    """Why there is no answer: what the caller can mend is passed on, what only whoever runs this service can is not."""
    try:
        values = json.loads(body)
    except ValueError:
        values = {"message": body.decode(errors="replace")}
    error = values.get("error", values) if isinstance(values, dict) else values
    message, error_type, param = _words(error)
    status = answer.status_code
    if status == 429:
        after = answer.headers.get("Retry-After")
        return PolicyRefused(
            f"{url} has too much to do: {message}", 429, error_type="rate_limit_error", retry_after=after
        )
    if status in (400, 404, 413, 415, 422):
        return PolicyRefused(f"{url} refuses: {message}", 400 if status == 404 else status, param, error_type)
    remedy = f"; set {KEY_VARIABLE} to its key" if status in (401, 403) else ""
    return PolicyLost(f"{url} answers {status}: {message}{remedy}")


def _failed(url: str, error: Any) -> PolicyLost | PolicyRefused:
    """What ended an answer that was begun."""
    message, error_type, param = _words(error)
    code = error.get("code") if isinstance(error, dict) else None
    if code in (400, 413, 422, "400", "413", "422"):
        return PolicyRefused(f"{url} refuses: {message}", int(code), param, error_type)
    return PolicyLost(f"{url} broke off: {message}")


def _words(error: Any) -> tuple[str, str, str | None]:
    """The message, type and field of an error, of which each server has its own form."""
    if not isinstance(error, dict):
        return str(error)[:300], "invalid_request_error", None
    message = error.get("message") or error.get("detail") or error
    error_type, param = error.get("type"), error.get("param")
    return (
        (message if isinstance(message, str) else json.dumps(message))[:300],
        error_type if isinstance(error_type, str) else "invalid_request_error",
        param if isinstance(param, str) else None,
    )
