"""A policy that another OpenAI-compatible server answers for, such as vLLM.

Where that server has a model named by the promoted policy's id (vLLM: `--served-model-name ID`), it is asked for that
one and its answers are the policy's. Otherwise its first model answers, and its answers are kept as those of
`upstream:MODEL`, so that nobody takes them for the policy's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from rlhf_loop.server.policy_process import Ask, Event, PolicyLost, PolicyRefused, Said, Started

KEY_VARIABLE = "RLHF_LOOP_UPSTREAM_KEY"
"""The environment variable with the key that the other server wants, if it does."""

_LIST_SECONDS = 10.0  # how long a list of models is believed


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
        self._listed = 0.0

    async def start(self) -> None:
        """Asks which models there are. Raises `PolicyLost` when the server does not say."""
        await self._list()
        self.alive = True

    async def stream(self, ask: Ask) -> AsyncIterator[Event]:
        """The answer bit by bit."""
        await self._list()
        model = self.policy_id if self.policy_id in self._models else self._models[0]
        tokens = [0] * ask.n
        ended = [False] * ask.n
        try:
            async with self._client.stream("POST", f"{self.url}/chat/completions", json=_body(ask, model)) as answer:
                if answer.status_code != 200:
                    said = (await answer.aread()).decode(errors="replace")[:300]
                    if answer.status_code in (400, 404, 413, 422):
                        raise PolicyRefused(f"{self.url} refuses: {said}")
                    raise PolicyLost(f"{self.url} answers {answer.status_code}: {said}")
                named = model if model == self.policy_id else f"upstream:{model}"
                yield Started(policy_id=named, prompt_tokens=0)
                async for line in answer.aiter_lines():
                    if not line.startswith("data:") or line.endswith("[DONE]"):
                        continue
                    for choice in json.loads(line.removeprefix("data:")).get("choices", ()):
                        number, text = choice["index"], (choice.get("delta") or {}).get("content") or ""
                        tokens[number] += bool(text)  # servers send a token at a time, more or less
                        if text:
                            yield Said(choice=number, text=text)
                        if finish := choice.get("finish_reason"):
                            ended[number] = True
                            cut = finish == "length"
                            yield Said(choice=number, finish="length" if cut else "stop", tokens=tokens[number])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise PolicyLost(f"{self.url} broke off: {error!r}") from error
        if not all(ended):
            raise PolicyLost(f"{self.url} broke off before the end of the answer")

    async def close(self) -> None:
        """Closes the connections."""
        self.alive = False
        await self._client.aclose()

    async def _list(self) -> None:
        if self._models and time.monotonic() - self._listed < _LIST_SECONDS:
            return
        try:
            answer = await self._client.get(f"{self.url}/models")
            answer.raise_for_status()
            self._models = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise PolicyLost(f"{self.url}/models does not list models ({error}); check --upstream") from error
        if not self._models:
            raise PolicyLost(f"{self.url} serves no model; start one there")
        self._listed = time.monotonic()


def _body(ask: Ask, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": list(ask.messages),
        "n": ask.n,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "max_tokens": ask.max_tokens,
        "seed": ask.seed,
        "stream": True,
    }
    if ask.stop:
        body["stop"] = list(ask.stop)
    if ask.top_k:
        body["top_k"] = ask.top_k
    return body
