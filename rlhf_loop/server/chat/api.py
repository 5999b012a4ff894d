"""`/v1/chat/completions` and `/v1/models`, as OpenAI's API has them, answered by the promoted policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse

from rlhf_loop.server.access import require
from rlhf_loop.server.chat.answering import Answer, begin, failure_of, unknown_model
from rlhf_loop.server.chat.answers import response
from rlhf_loop.server.chat.drafts import delta_of, fields_of
from rlhf_loop.server.chat.engine import Delta
from rlhf_loop.server.chat.request import PROMOTED, ChatRequest

OPENAI_S = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""Paths where a wrong field is a 400, as OpenAI's clients know it."""

router = APIRouter(prefix="/v1", tags=["chat"], dependencies=[Depends(require("app"))])


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The policy that answers, by its id and as `promoted`."""
    return {"object": "list", "data": [_model(name) for name in _names(request)]}


@router.get("/models/{model:path}")
def model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    names = _names(request)
    if model not in names:
        raise HTTPException(404, unknown_model(model, names[-1] if names else ""))
    return _model(model)


def _names(request: Request) -> list[str]:
    policies = request.app.state.service.policies
    current = policies.current.policy_id if policies is not None and policies.current is not None else None
    return [PROMOTED, current] if current else []


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rlhf-loop"}


AS_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {}}, "application/json": {"schema": {"type": "object"}}}


@router.post("/chat/completions", response_model=None, responses={200: {"content": AS_EVENTS}})
async def chat(request: Request, body: ChatRequest) -> StreamingResponse | dict[str, Any]:
    """An answer to a conversation, by the promoted policy, whole or as a stream of server-sent events."""
    answer, _ = await begin(request.app.state.service, body, "chatcmpl")
    if body.stream:
        return StreamingResponse(_stream(answer), media_type="text/event-stream")
    return response(answer.id, answer.policy_id, answer.choices(), answer.usage, answer.fields)


@router.post("/completions", response_model=None)
async def completions() -> None:
    """Is not there: a policy answers conversations."""
    said = "there are no completions of bare text here: send a conversation to /v1/chat/completions"
    raise HTTPException(404, {"message": said, "type": "invalid_request_error"})


async def _stream(answer: Answer) -> AsyncIterator[str]:
    """The answer as server-sent events; its ends come only when it is stored."""
    for number in range(answer.body.n or 1):
        yield _chunk(answer, number, {"role": "assistant", "content": ""})
    while (event := await answer.events.get()) is not None:
        if isinstance(event, Exception):
            yield _event({"error": failure_of(event)})
            return
        if isinstance(event, Delta):
            raw = event.raw or {"delta": {"content": event.text}}
            delta = {name: value for name, value in delta_of(raw).items() if name != "role" and value not in (None, "")}
            fields = fields_of(raw)
            if delta or any(value is not None for value in fields.values()):
                yield _chunk(answer, event.choice, delta, None, fields)
    for number, choice in enumerate(answer.choices()):
        yield _chunk(answer, number, {}, choice.values["finish_reason"])
    options = answer.body.stream_options
    if options is not None and options.include_usage:
        yield _event({**_head(answer), "choices": [], "usage": answer.usage})
    yield "data: [DONE]\n\n"


def _head(answer: Answer) -> dict[str, Any]:
    return {
        **answer.fields,
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.policy_id,
    }


def _chunk(
    answer: Answer,
    number: int,
    delta: dict[str, Any],
    finish: str | None = None,
    fields: dict[str, Any] | None = None,
) -> str:
    choice = {"logprobs": None, **(fields or {}), "index": number, "delta": delta, "finish_reason": finish}
    return _event({**_head(answer), "choices": [choice]})


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"
