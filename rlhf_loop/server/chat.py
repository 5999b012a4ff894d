"""`/v1/chat/completions` and `/v1/models`, as OpenAI's API has them, answered by the promoted policy.

Every answer is stored before its last byte goes out, so a response id that an application has can be given feedback
on. An answer is written to its end and stored also when whoever asked has gone away meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints, model_validator

from rlhf_loop.errors import StoreUnavailable
from rlhf_loop.feedback.table_rows import storable
from rlhf_loop.records import Message, event_id
from rlhf_loop.server.access import require
from rlhf_loop.server.answers import Choice, Conversation, prompt_of, response, save_answer, usage
from rlhf_loop.server.policy_process import Ask, Policies, PolicyLost, PolicyRefused, Said, Started
from rlhf_loop.server.service import Service

router = APIRouter(prefix="/v1", tags=["chat"], dependencies=[Depends(require("app"))])
logger = logging.getLogger("rlhf_loop.server")

PROMOTED = "promoted"
"""The name of whichever policy is promoted, for `model`."""

MOST_WAITING = 64
"""Answers that are being written or wait for it; more are told to come again."""

Whole = Annotated[int, Strict()]  # true is no number, and neither is "1"
Number = Annotated[float, Strict()]
Yes = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(max_length=200_000)]


class Part(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class Turn(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: None = None

    def message(self) -> Message:
        """As the loop keeps it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="forbid")
    include_usage: Yes = False


class ChatRequest(BaseModel):
    """A request for an answer. What OpenAI's API has beyond this is refused, not left out in silence."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, StringConstraints(max_length=200)] = Field(
        PROMOTED, description="`promoted`, or the id of the policy that is promoted"
    )
    messages: list[Turn] = Field(min_length=1, max_length=500)
    n: Whole = Field(1, ge=1, le=8, description="how many answers")
    stream: Yes = False
    stream_options: StreamOptions | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    max_tokens: Whole | None = Field(None, ge=1, le=32768)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=32768)
    stop: (
        Annotated[str, StringConstraints(min_length=1, max_length=100)]
        | list[Annotated[str, StringConstraints(min_length=1, max_length=100)]]
        | None
    ) = Field(None, max_length=4)
    seed: Whole | None = Field(None, ge=0, lt=2**31)
    user: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="the application's name for its user; kept as a keyed hash"
    )
    metadata: dict[str, Any] | None = Field(
        None, max_length=16, description="`conversation_id` and `tags` (words with commas) are used"
    )
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="only 0")
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="only 0")

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> ChatRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last one is the assistant's; it must be the one to answer")
        return self

    @model_validator(mode="after")
    def _is_tagged_in_words(self) -> ChatRequest:
        tags, name = self._metadata("tags"), self._metadata("conversation_id")
        if tags is not None and not all(isinstance(word, str) for word in (tags if isinstance(tags, list) else [tags])):
            raise ValueError("metadata.tags: give words with commas, or a list of words")
        if name is not None and not isinstance(name, str | int | float):
            raise ValueError("metadata.conversation_id: give a text or a number")
        return self

    def conversation(self) -> Conversation:
        """What of it the store keeps."""
        tags, name = self._metadata("tags"), self._metadata("conversation_id")
        words = tags if isinstance(tags, list) else (tags or "").split(",")
        return Conversation(
            messages=tuple(turn.message() for turn in self.messages),
            user=self.user,
            name=None if name is None else storable(str(name)),
            tags=tuple(storable(word) for part in words[:20] if (word := part.strip()[:100])),
        )

    def _metadata(self, name: str) -> Any:
        return (self.metadata or {}).get(name)


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The policy that answers, by its id and as `promoted`."""
    policies = request.app.state.service.policies
    current = policies.current.policy_id if policies is not None and policies.current is not None else None
    names = [PROMOTED, current] if current else []
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "rlhf-loop"} for name in names],
    }


_AS_EVENTS = {"text/event-stream": {"schema": {}}, "application/json": {"schema": {"type": "object"}}}


@router.post("/chat/completions", response_model=None, responses={200: {"content": _AS_EVENTS}})
async def chat(request: Request, body: ChatRequest) -> StreamingResponse | dict[str, Any]:
    """An answer to a conversation, by the promoted policy, whole or as a stream of server-sent events."""
    service: Service = request.app.state.service
    policies = service.policies
    if policies is None:
        raise HTTPException(503, f"chat is off: {service.chat_off}")
    current = policies.current.policy_id if policies.current is not None else PROMOTED
    if body.model not in (PROMOTED, current):
        raise HTTPException(404, f"model: `{body.model[:100]}` is not served now; use `{PROMOTED}` or `{current}`")
    if len(service.answers) >= MOST_WAITING:
        raise HTTPException(429, "too many answers are being written", {"Retry-After": "2"})
    answer = Answer(service, policies, body)
    task = asyncio.create_task(answer.write())
    service.answers.add(task)
    task.add_done_callback(service.answers.discard)
    if body.stream:
        first = await answer.events.get()
        _raise_for(first)
        return StreamingResponse(answer.stream(), media_type="text/event-stream")
    await asyncio.shield(task)
    _raise_for(answer.failure)
    return response(answer.id, answer.policy_id, answer.choices(), answer.prompt_tokens)


class Answer:
    """One answer while it is written."""

    def __init__(self, service: Service, policies: Policies, body: ChatRequest):
        self.id = f"chatcmpl-{event_id()}"
        self.service, self.policies, self.body = service, policies, body
        self.created = int(time.time())
        self.policy_id = ""
        self.prompt_tokens = 0
        self.failure: Exception | None = None
        self.events: asyncio.Queue[Said | Started | Exception | None] = asyncio.Queue()  # None: all is stored
        self._texts = [""] * body.n
        self._ends: list[Said | None] = [None] * body.n

    def choices(self) -> list[Choice]:
        """The answer, when it is whole."""
        return [
            Choice(text=text, finish=end.finish or "stop", tokens=end.tokens)
            for text, end in zip(self._texts, self._ends, strict=True)
            if end is not None
        ]

    async def write(self) -> None:
        """Has the policy write it, and stores it; `failure` says what went wrong, where something did."""
        try:
            prompt, key = await asyncio.to_thread(prompt_of, self.service, self.body.conversation())
            ask = self._ask(prompt.id)
            try:
                await self._collect(ask)
            except PolicyLost:
                if self.body.stream and any(self._texts):
                    raise  # what was sent cannot be taken back
                logger.warning("answer begun again", extra={"fields": {"response": self.id}})
                self._texts, self._ends = [""] * self.body.n, [None] * self.body.n
                await self._collect(ask)
            sampling: dict[str, Any] = {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k}
            sampling |= {"max_new_tokens": ask.max_tokens} | ({"stop": list(ask.stop)} if ask.stop else {})
            await asyncio.to_thread(
                save_answer, self.service, self.id, prompt, key, self.choices(),
                policy_id=self.policy_id, sampling=sampling, seed=ask.seed,
            )  # fmt: skip
            if self.service.log_texts:
                said = {"messages": [dict(m) for m in ask.messages], "answers": self._texts}
                logger.info("answer", extra={"fields": {"response": self.id, **said}})
            self.events.put_nowait(None)
        except Exception as error:
            if not isinstance(error, (PolicyLost, PolicyRefused)):
                logger.exception("an answer failed", extra={"fields": {"response": self.id}})
            self.failure = error
            self.events.put_nowait(error)

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events; its ends come only when it is stored."""
        for number in range(self.body.n):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        while (event := await self.events.get()) is not None:
            if isinstance(event, Exception):
                yield _event({"error": _failure(event)})
                return
            if isinstance(event, Said) and event.text:
                yield self._chunk(event.choice, {"content": event.text})
        for number, choice in enumerate(self.choices()):
            yield self._chunk(number, {}, choice.finish)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            written = sum(choice.tokens for choice in self.choices())
            yield _event({**self._head(), "choices": [], "usage": usage(self.prompt_tokens, written)})
        yield "data: [DONE]\n\n"

    async def _collect(self, ask: Ask) -> None:
        async with self.policies.reserved() as engine:
            async for event in engine.stream(ask):
                if isinstance(event, Started):
                    self.policy_id, self.prompt_tokens = event.policy_id, event.prompt_tokens
                else:
                    self._texts[event.choice] += event.text
                    self._ends[event.choice] = event if event.finish else None
                self.events.put_nowait(event)

    def _ask(self, key: str) -> Ask:
        body, service = self.body, self.service
        settings = service.sampling
        messages = tuple(turn.message() for turn in body.messages)
        system = service.recipe.policy.system_prompt if service.recipe is not None else None
        if system is not None and not any(message["role"] == "system" for message in messages):
            messages = (Message(role="system", content=system), *messages)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return Ask(
            messages=messages,
            n=body.n,
            temperature=settings.temperature if body.temperature is None else body.temperature,
            top_p=settings.top_p if body.top_p is None else body.top_p,
            top_k=settings.top_k,
            max_tokens=body.max_completion_tokens or body.max_tokens or settings.max_new_tokens,
            stop=tuple(stop),
            seed=secrets.randbits(31) if body.seed is None else body.seed,
            round=service.round,
            key=key,
        )

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.policy_id}

    def _chunk(self, number: int, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**self._head(), "choices": [choice]})


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, PolicyRefused):
        return {"message": str(error), "type": "error", "code": 400}
    if isinstance(error, PolicyLost):
        return {"message": f"{error}; try again", "type": "error", "code": 503}
    if isinstance(error, StoreUnavailable):
        said = "the store cannot be used now, and the answer was not stored; try again, or see the service's log"
        return {"message": said, "type": "error", "code": 503}
    return {"message": "the answer could not be written; the service's log says why", "type": "error", "code": 500}


def _raise_for(event: object) -> None:
    if isinstance(event, Exception):
        failure = _failure(event)
        headers = {"Retry-After": "5"} if failure["code"] == 503 else None
        raise HTTPException(failure["code"], failure["message"], headers)
