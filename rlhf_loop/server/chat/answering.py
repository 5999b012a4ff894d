"""One answer to an application while it is written: by the policy, into the store, for whoever waits.

Every answer is stored before its last byte goes out, so a response id that an application has can be given feedback
on. An answer is written to its end and stored also when whoever asked has gone away meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from fastapi import HTTPException

from rlhf_loop.errors import StoreUnavailable
from rlhf_loop.feedback.store import quotas
from rlhf_loop.records import Message, event_id
from rlhf_loop.server.chat.answers import Choice, prompt_of, save_answer, usage
from rlhf_loop.server.chat.drafts import Draft
from rlhf_loop.server.chat.engine import Ask, Delta, Noted, PolicyLost, PolicyRefused, Started
from rlhf_loop.server.chat.policies import Policies
from rlhf_loop.server.chat.request import PROMOTED, UNREAD, ChatRequest
from rlhf_loop.server.chat.upstream import Upstream
from rlhf_loop.server.service import Service

logger = logging.getLogger("rlhf_loop.server")

MOST_WAITING = 64
"""Answers that are being written or wait for it; more are told to come again."""


class Answer:
    """One answer while it is written."""

    def __init__(self, service: Service, policies: Policies, body: ChatRequest, kind: str):
        self.id = f"{kind}-{event_id()}"
        self.service, self.policies, self.body = service, policies, body
        self.created = int(time.time())
        self.policy_id = ""
        self.usage: dict[str, Any] | None = None  # None: another server did not say
        self.fields: dict[str, Any] = {}  # what another server says of the whole answer
        self.failure: Exception | None = None
        self.events: asyncio.Queue[Delta | Started | Noted | Exception | None] = asyncio.Queue()  # None: all is stored
        self._passed_on: dict[str, Any] = {}  # fields that another server was asked with
        self._n = body.n or 1
        self._drafts = [Draft() for _ in range(self._n)]

    def choices(self) -> list[Choice]:
        """The answer, when it is whole."""
        written = (self.usage or {}).get("completion_tokens") if self._n == 1 else None
        return [draft.choice(written if isinstance(written, int) else None) for draft in self._drafts]

    async def write(self) -> None:
        """Has the policy write it, and stores it; `failure` says what went wrong, where something did."""
        service = self.service
        try:
            prompt, key = await asyncio.to_thread(prompt_of, service, self.body.conversation())
            ask = self._ask(prompt.id, await asyncio.to_thread(lambda: service.round))
            try:
                await self._collect(ask)
            except PolicyLost:
                if self.body.stream and any(draft.begun for draft in self._drafts):
                    raise  # what was sent cannot be taken back
                logger.warning("answer begun again", extra={"fields": {"response": self.id}})
                self._drafts = [Draft() for _ in range(self._n)]
                await self._collect(ask)
            sampling: dict[str, Any] = {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k}
            sampling |= {"max_new_tokens": ask.max_tokens} | ({"stop": list(ask.stop)} if ask.stop else {})
            sampling |= self._passed_on
            await asyncio.to_thread(
                save_answer,
                service,
                self.id,
                prompt,
                key,
                self.choices(),
                policy_id=self.policy_id,
                sampling=sampling,
                seed=ask.seed,
                round=ask.round,
            )
            if service.log_texts:
                texts = [choice.text for choice in self.choices()]
                said = service.redact_all({"messages": [dict(m) for m in ask.messages], "answers": texts})
                logger.info("answer", extra={"fields": {"response": self.id, **said}})
            self.events.put_nowait(None)
        except Exception as error:
            if not isinstance(error, (PolicyLost, PolicyRefused)):
                logger.exception("an answer failed", extra={"fields": {"response": self.id}})
            self.failure = error
            self.events.put_nowait(error)

    async def _collect(self, ask: Ask) -> None:
        self.usage, self.fields = None, {}
        async with self.policies.reserved() as engine:
            passes_on, read = isinstance(engine, Upstream), 0
            if passes_on:
                self._passed_on = {k: v for k, v in self.body.asked().items() if k not in UNREAD}
            elif (name := self.body.unsupported()) is not None:
                raise PolicyRefused(
                    f"{name}: the policy that answers here takes and gives text alone; leave this out, or have a "
                    "server answer that knows it: `rlhf-loop serve --upstream URL`",
                    param=name,
                )
            async for event in engine.stream(ask):
                if isinstance(event, Started):
                    self.policy_id, read = event.policy_id, event.prompt_tokens
                elif isinstance(event, Noted):
                    self.usage = event.fields.get("usage", self.usage)
                    self.fields |= {name: value for name, value in event.fields.items() if name != "usage"}
                else:
                    self._drafts[event.choice].add(event)
                self.events.put_nowait(event)
            if not passes_on:
                self.usage = usage(read, sum(choice.tokens for choice in self.choices()))

    def _ask(self, key: str, round: int) -> Ask:
        body, service = self.body, self.service
        settings = service.sampling
        messages = tuple(turn.message() for turn in body.messages)
        system = service.recipe.policy.system_prompt if service.recipe is not None else None
        if any(message["role"] == "system" for message in messages):
            system = None
        elif system is not None:
            messages = (Message(role="system", content=system), *messages)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return Ask(
            messages=messages,
            n=self._n,
            temperature=settings.temperature if body.temperature is None else body.temperature,
            top_p=settings.top_p if body.top_p is None else body.top_p,
            top_k=settings.top_k if body.top_k is None else max(0, body.top_k),
            max_tokens=body.max_completion_tokens or body.max_tokens or settings.max_new_tokens,
            stop=tuple(text for text in stop if text),
            seed=secrets.randbits(31) if body.seed is None else _within_64_bits(body.seed),
            round=round,
            key=key,
            stream=bool(body.stream),
            more=body.relayed(system),
        )


async def begin(service: Service, body: ChatRequest, kind: str) -> tuple[Answer, asyncio.Task[None]]:
    """An answer that is now being written, of this `kind` of id. Raises what the caller is told where there is none.

    Where it is to be read bit by bit, its first bit is waited for: what is refused is refused whole.
    """
    policies = service.policies
    if policies is None:
        raise HTTPException(503, f"chat is off: {service.chat_off}")
    current = policies.current.policy_id if policies.current is not None else PROMOTED
    if body.model is not None and body.model not in (PROMOTED, current):
        raise HTTPException(404, unknown_model(body.model, current))
    _check_quota(await asyncio.to_thread(quotas.usage, service.store))
    if len(service.answers) >= MOST_WAITING:  # nothing is waited for until this one is among them
        raise HTTPException(429, "too many answers are being written", {"Retry-After": "2"})
    answer = Answer(service, policies, body, kind)
    task = asyncio.create_task(answer.write())
    service.answers.add(task)
    task.add_done_callback(service.answers.discard)
    if body.stream:
        raise_for(await answer.events.get())
    else:
        await asyncio.shield(task)
        raise_for(answer.failure)
    return answer, task


def _check_quota(usage: quotas.Usage) -> None:
    """Answers 429 where the project's quota of today is spent."""
    if (kind := usage.spent) is not None:
        said = f"the quota of {usage.quota[kind]:,} {kind} a day is spent; it begins anew at midnight UTC"
        headers = {"Retry-After": str(usage.seconds_left)}
        raise HTTPException(429, {"message": said, "type": "insufficient_quota"}, headers)


def unknown_model(model: str, current: str) -> dict[str, Any]:
    """What is said of a model that is not served."""
    names = " or ".join(f"`{name}`" for name in dict.fromkeys([PROMOTED, current]) if name)
    said = f"model: `{model[:100]}` is not served now; use {names}"
    return {"message": said, "type": "invalid_request_error", "param": "model"}


def failure_of(error: Exception) -> dict[str, Any]:
    """What went wrong with an answer, in the words of OpenAI's API; `code` is the status."""
    if isinstance(error, PolicyRefused):
        return {"message": str(error), "type": error.error_type, "param": error.param, "code": error.status}
    if isinstance(error, PolicyLost):
        return {"message": f"{error}; try again", "type": "error", "param": None, "code": 503}
    if isinstance(error, StoreUnavailable):
        said = "the store cannot be used now, and the answer was not stored; try again, or see the service's log"
        return {"message": said, "type": "error", "param": None, "code": 503}
    said = "the answer could not be written; the service's log says why"
    return {"message": said, "type": "error", "param": None, "code": 500}


def raise_for(event: object) -> None:
    """Answers with what went wrong, where it is that."""
    if isinstance(event, Exception):
        failure = failure_of(event)
        after = event.retry_after if isinstance(event, PolicyRefused) else None
        headers = {"Retry-After": after or "5"} if failure["code"] in (429, 503) else None
        raise HTTPException(failure["code"], failure, headers)


def _within_64_bits(seed: int) -> int:
    """The same number where files and other servers can hold it, else one that depends on it alone."""
    return (seed + 2**63) % 2**64 - 2**63
