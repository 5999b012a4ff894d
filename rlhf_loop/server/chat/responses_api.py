"""`/v1/responses`, OpenAI's other way to ask, as far as text goes: for clients that know no other.

It is answered and stored as `/v1/chat/completions` is, and its id takes feedback too. What goes beyond text is refused
by name; `/v1/chat/completions` may know it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rlhf_loop.server.access import require
from rlhf_loop.server.chat.answering import Answer, begin, failure_of
from rlhf_loop.server.chat.api import AS_EVENTS
from rlhf_loop.server.chat.drafts import delta_of
from rlhf_loop.server.chat.engine import Delta
from rlhf_loop.server.chat.request import (
    PROMOTED,
    UNREAD,
    ChatRequest,
    Part,
    Text,
    Yes,
    is_empty,
    is_neutral,
)
from rlhf_loop.server.types import Number, Whole

router = APIRouter(prefix="/v1", tags=["chat"], dependencies=[Depends(require("app"))])

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "effort": ("none", "medium"),
    "format": ({"type": "text"},),
    "include": (["reasoning.encrypted_content"],),
    "parallel_tool_calls": (False, True),
    "service_tier": ("auto", "default"),
    "store": (False, True),
    "stream_options": ({"include_obfuscation": False}, {"include_obfuscation": True}),
    "summary": ("auto",),
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
}
"""Field, or field of `text` and `reasoning`, -> values with which it asks for what is done anyway."""


class Item(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="allow")
    type: str | None = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[Part] | None = None

    def beyond_text(self) -> str | None:
        """The name of what is not plain text in it; None where all is."""
        if (self.type or "message") != "message":
            return "type"
        if self.role is None:
            return "role"
        if self.content is None:
            return "content"
        parts = self.content if isinstance(self.content, list) else ()
        return next((f"content.{n}.type" for n, part in enumerate(parts) if part.said is None), None)

    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "".join(part.said or "" for part in self.content)
        return self.content or ""


class ResponseRequest(BaseModel):
    """A request for an answer. What goes beyond text is refused, not left out in silence."""

    model_config = ConfigDict(extra="allow")
    model: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        PROMOTED, description="`promoted`, or the id of the policy that is promoted"
    )
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=500)]
    instructions: Text | None = Field(None, description="goes before the conversation, as the system's message")
    stream: Yes | None = False
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    max_output_tokens: Whole | None = Field(None, ge=1)
    user: Annotated[str, StringConstraints(max_length=200)] | None = None
    metadata: dict[str, Any] | None = Field(None, max_length=16)

    @model_validator(mode="after")
    def _can_be_asked(self) -> ResponseRequest:
        try:
            self.as_chat()
        except ValidationError as error:
            problem = error.errors()[0]
            said = str(problem["msg"]).removeprefix("Value error, ").replace("messages:", "input:")
            raise ValueError(f"input: {said}" if problem["loc"] == ("messages",) else said) from None
        return self

    def unsupported(self) -> str | None:
        """The name of what goes beyond text; None where nothing does."""
        for number, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if (name := item.beyond_text()) is not None:
                return f"input.{number}.{name}"
        return next((name for name, value in (self.model_extra or {}).items() if not _asks_nothing(name, value)), None)

    def as_chat(self) -> ChatRequest:
        """The same as a request for a chat completion."""
        items = self.input if isinstance(self.input, list) else [Item(role="user", content=self.input)]
        messages = [{"role": item.role or "user", "content": item.text()} for item in items]
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        names = ("model", "stream", "temperature", "top_p", "user", "metadata")
        return ChatRequest.model_validate(
            {name: getattr(self, name) for name in names}
            | {"messages": messages, "max_completion_tokens": self.max_output_tokens}
        )


@router.post("/responses", response_model=None, responses={200: {"content": AS_EVENTS}})
async def respond(request: Request, body: ResponseRequest) -> StreamingResponse | dict[str, Any]:
    """An answer to a conversation, by the promoted policy, whole or as a stream of server-sent events."""
    if (name := body.unsupported()) is not None:
        said = f"{name}: /v1/responses takes and gives text alone; leave it out, or ask /v1/chat/completions"
        raise HTTPException(400, {"message": said, "type": "invalid_request_error", "param": name})
    answer, _ = await begin(request.app.state.service, body.as_chat(), "resp")
    if body.stream:
        return StreamingResponse(_stream(answer, body), media_type="text/event-stream")
    return _whole(answer, body)


async def _stream(answer: Answer, body: ResponseRequest) -> AsyncIterator[str]:
    """The answer as server-sent events; it is stored before its text is called done."""
    number = 0

    def event(name: str, **values: Any) -> str:
        nonlocal number
        number += 1
        return f"event: {name}\ndata: {json.dumps({**values, 'type': name, 'sequence_number': number - 1})}\n\n"

    place = {"item_id": _message_id(answer), "output_index": 0, "content_index": 0}
    begun = _response(answer, body, "in_progress", [])
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=_message(answer, "in_progress", []))
    yield event("response.content_part.added", **place, part=_text(""))
    while (said := await answer.events.get()) is not None:
        if isinstance(said, Exception):
            failure = failure_of(said)
            yield event("error", **failure, error=failure)
            return
        if isinstance(said, Delta) and (text := _text_of(said)):
            yield event("response.output_text.delta", **place, delta=text, logprobs=[])
    whole = _whole(answer, body)
    item = whole["output"][0]
    yield event("response.output_text.done", **place, text=item["content"][0]["text"], logprobs=[])
    yield event("response.content_part.done", **place, part=item["content"][0])
    yield event("response.output_item.done", output_index=0, item=item)
    yield event(f"response.{whole['status']}", response=whole)


def _text_of(delta: Delta) -> str:
    text = delta.text if delta.raw is None else delta_of(delta.raw).get("content")
    return text if isinstance(text, str) else ""


def _whole(answer: Answer, body: ResponseRequest) -> dict[str, Any]:
    """The answer, when it is whole."""
    (choice,) = answer.choices()
    status = "completed" if choice.finish == "stop" else "incomplete"
    message = choice.values["message"]
    text = message.get("content") or message.get("refusal") or ""
    return _response(answer, body, status, [_message(answer, status, [_text(text if isinstance(text, str) else "")])])


def _response(answer: Answer, body: ResponseRequest, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """In the words of OpenAI's API."""
    usage = answer.usage if output else None
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": answer.policy_id,
        "output": output,
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": True,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": usage
        and {
            "input_tokens": usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.get("total_tokens", 0),
        },
    }


def _message_id(answer: Answer) -> str:
    return f"msg_{answer.id.removeprefix('resp-')}"


def _message(answer: Answer, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": _message_id(answer), "type": "message", "role": "assistant", "status": status, "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _asks_nothing(name: str, value: Any) -> bool:
    if is_empty(value) or name in UNREAD:
        return True
    if name in ("text", "reasoning") and isinstance(value, dict):
        return all(_asks_nothing(inner, item) for inner, item in value.items())
    return is_neutral(name, value, NEUTRAL)
