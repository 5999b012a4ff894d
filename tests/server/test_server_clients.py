"""What clients of OpenAI's API send by default, what asks for nothing, and what is refused by name.

The requests were recorded from the clients and shortened.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from samples.server import client, file_store, service, with_chat

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Completion
from rlhf_loop.server.app import create_app
from rlhf_loop.server.chat.answering import begin
from rlhf_loop.server.chat.request import ChatRequest
from rlhf_loop.server.limits import Limits
from rlhf_loop.server.service import Service

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
USER = {"role": "user", "content": "hi"}
ASK = {"model": "promoted", "messages": [USER]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DUMPED = {"content": "hello", "refusal": None, "role": "assistant", "annotations": None, "audio": None,
          "function_call": None, "tool_calls": None}  # fmt: skip

SENT: list[tuple[str, str, dict[str, Any]]] = [
    ("openai 2.54", CHAT, ASK),
    ("openai 2.54, a history as model_dump() gives it", CHAT, {**ASK, "messages": [USER, DUMPED, USER]}),
    ("openai 2.54, async", CHAT, {**ASK, "stream": True, "stream_options": {"include_usage": True}}),
    ("openai 2.54, parse()", CHAT, {**ASK, "stream": False, "logprobs": False}),
    ("openai 2.54, responses", RESPONSES, {"input": "hi", "instructions": "be brief", "model": "promoted"}),
    ("openai 2.54, responses.stream()", RESPONSES, {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "model": "promoted",
        "stream": True,
    }),
    ("litellm 1.110", CHAT, {**ASK, "messages": [USER, {"content": "hello", "role": "assistant"}, USER]}),
    ("langchain-openai 1.7", CHAT, {
        "messages": [{"content": "s", "role": "system"}, {"content": "hi", "name": "ann", "role": "user"}],
        "model": "promoted", "stream": False,
    }),
    ("langchain-openai 1.7, responses", RESPONSES, {
        "input": [{"content": "hi", "role": "user", "type": "message"}], "model": "promoted", "stream": True,
    }),
    ("llama-index-llms-openai-like 0.8", CHAT, {**ASK, "stream": True, "temperature": 0.1}),
    ("autogen-ext 0.7", CHAT, {
        "messages": [
            {"content": "You are a helpful AI assistant.", "role": "system"},
            {"role": "user", "name": "user", "content": "talk"},
            {"role": "assistant", "content": "well"},
            {"role": "user", "name": "bob", "content": "go on"},
        ],
        "model": "promoted", "stream": False,
    }),
    ("openai-agents 0.20", RESPONSES, {
        "include": [], "instructions": "be brief", "model": "promoted", "tools": [], "input": [
            {"content": "hi", "role": "user"},
            {"id": "msg_1", "role": "assistant", "status": "completed", "type": "message",
             "content": [{"annotations": [], "text": "hello", "type": "output_text", "logprobs": []}]},
            {"role": "user", "content": "more"},
        ],
    }),
    ("openai-agents 0.20, chat", CHAT, {"messages": [{"content": "s", "role": "system"}, USER], "model": "promoted"}),
    ("pydantic-ai 2.31", CHAT, {**ASK, "stream": True, "stream_options": {"include_usage": True}}),
    ("haystack-ai 3.4", CHAT, {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "name": "ann", "content": "hi"}],
        "model": "promoted", "n": 1, "stream": False,
    }),
    ("semantic-kernel 1.45", CHAT, {**ASK, "max_tokens": 5, "stream": False, "temperature": 0.5}),
    ("dspy 3.4", CHAT, {"model": "promoted", "messages": [{"role": "system", "content": "s"}, USER]}),
    ("npm openai 6.49", CHAT, {"model": "promoted", "messages": [USER, {"role": "assistant", "content": "x"}, USER]}),
    ("npm openai 6.49, responses", RESPONSES, {"model": "promoted", "input": "hi", "stream": True}),
    ("ai 6.0 with @ai-sdk/openai-compatible 2.0", CHAT, {
        "model": "promoted", "stream": True, "messages": [{"role": "system", "content": "s"}, USER],
    }),
]  # fmt: skip


@pytest.fixture
def served(tmp_path: Path) -> Service:
    made = service(file_store(tmp_path))
    with_chat(made)
    return made


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Service, TestClient]]:
    made = service(Store.open(":memory:"), limits=Limits(rates={**Limits().rates, "admin": (1e9, 10**9)}))
    with_chat(made)
    with client(made) as http:
        yield made, http


@pytest.mark.parametrize(("path", "body"), [case[1:] for case in SENT], ids=[case[0] for case in SENT])
def test_what_a_client_sends_is_answered_and_stored(served: Service, path: str, body: dict[str, Any]) -> None:
    with client(served) as http:
        answer = http.post(path, json=body)
        assert answer.is_success, answer.text
        id = served.store.completions()[0].id
        assert id in answer.text
        assert http.post("/v1/feedback", json={"response_id": id, "thumb": "up"}).is_success
    assert served.store.completions()[0].text.endswith("says base 0")
    assert served.store.prompts()[0].split == "train"


NOTHING: list[dict[str, Any]] = [
    {"tools": []}, {"tools": None}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": "none"}, {"functions": []}, {"function_call": "none"}, {"function_call": None},
    {"response_format": {"type": "text"}}, {"response_format": None}, {"logprobs": False}, {"top_logprobs": 0},
    {"logprobs": None, "top_logprobs": None}, {"logit_bias": {}}, {"logit_bias": {"5": 0}}, {"modalities": ["text"]},
    {"audio": None, "prediction": None}, {"store": True}, {"store": False}, {"service_tier": "auto"},
    {"service_tier": "default"}, {"reasoning_effort": None}, {"reasoning_effort": "medium"}, {"verbosity": "medium"},
    {"metadata": {}}, {"metadata": None}, {"user": ""}, {"user": None}, {"stop": None}, {"stop": []}, {"stop": ""},
    {"n": None}, {"stream": None}, {"stream": False, "stream_options": None}, {"model": None},
    {"temperature": None, "top_p": None}, {"top_p": 0}, {"frequency_penalty": 0, "presence_penalty": 0.0},
    {"frequency_penalty": None}, {"max_tokens": None}, {"max_tokens": 10**6}, {"max_completion_tokens": 7},
    {"max_tokens": 3, "max_completion_tokens": 7}, {"seed": -1}, {"seed": 2**40}, {"seed": 2**80}, {"seed": None},
    {"web_search_options": None}, {"safety_identifier": "u", "prompt_cache_key": "k"}, {"top_k": -1}, {"top_k": 5},
    {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    {"repetition_penalty": 1.0, "min_p": 0}, {"chat_template_kwargs": {}}, {"what_is_to_come": None},
    {"messages": [{"role": "developer", "content": "s"}, {**USER, "name": "ann"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}]},
    {"messages": [USER, {"role": "assistant", "content": None}, USER]},
    {"messages": [USER, {"role": "assistant", "content": None, "refusal": "no", "tool_calls": []}, USER]},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER]},
    {"messages": [USER, {**DUMPED, "tool_calls": [], "annotations": [], "reasoning_content": None}, USER]},
    {"messages": [USER, {"role": "assistant"}, USER]},
    {"messages": [{**USER, "id": "m1", "createdAt": "2026-01-01", "cache_control": {"type": "ephemeral"}}]},
    {"best_of": 1, "length_penalty": 1.0, "min_tokens": 0, "keep_alive": "5m", "add_generation_prompt": True},
]  # fmt: skip


@pytest.mark.parametrize("change", NOTHING, ids=json.dumps)
def test_what_asks_for_nothing_is_taken(shared: tuple[Service, TestClient], change: Any, tmp_path: Path) -> None:
    served, http = shared
    before = len(served.store.completions())
    answer = http.post(CHAT, json={**ASK, **change})
    assert answer.is_success, answer.text
    (completion,) = served.store.completions()[before:]
    assert set(completion.sampling) <= {"temperature", "top_p", "top_k", "max_new_tokens", "stop"}
    write_records(tmp_path / "rows.parquet", [completion])
    assert read_records(tmp_path / "rows.parquet", Completion) == [completion]


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [TOOL]}, "tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"5": -100}}, "logit_bias"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "ash", "format": "wav"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": True}, "presence_penalty"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages.0.content.0.type"),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER]}, "messages.1.tool_calls"),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages.1.role"),
    ({"messages": [USER, {"role": "assistant", "content": "x", "reasoning_content": "y"}, USER]},
     "messages.1.reasoning_content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role"),
    ({"seed": "7"}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), ASKED, ids=[json.dumps(change) for change, _ in ASKED])
def test_what_is_asked_and_not_done_is_refused_by_name(
    shared: tuple[Service, TestClient], change: dict[str, Any], param: str
) -> None:
    served, http = shared
    before = len(served.store.completions())
    app = openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        app.chat.completions.create(**ASK, extra_body=change)
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert len(served.store.completions()) == before


def test_the_openai_client_asks_for_models_and_responses(served: Service) -> None:
    with client(served) as http:
        app = openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0)
        assert app.models.retrieve("promoted").id == "promoted"
        assert app.models.retrieve("base").owned_by == "rlhf-loop"
        with pytest.raises(openai.NotFoundError, match="use `promoted` or `base`"):
            app.models.retrieve("gpt-5/x")
        whole = app.responses.create(model="promoted", input="red", instructions="be brief", user="ann")
        with app.responses.stream(model="promoted", input=[{"role": "user", "content": "red"}]) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
            app.completions.create(model="promoted", prompt="x")
    assert whole.output_text == final.output_text == "".join(deltas) == "red says base 0"
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.status) == (3, 4, "completed")
    first = served.store.prompts()[0]
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert {c.id for c in served.store.completions()} == {whole.id, final.id}


def test_a_conversation_that_is_too_long_beside_its_instructions_loses_no_turn(served: Service) -> None:
    turns = [{"role": "user", "content": str(number)} for number in range(500)]
    with client(served) as http:
        answer = http.post(RESPONSES, json={"input": turns, "instructions": "be brief"})
        assert http.post(RESPONSES, json={"input": turns}).status_code == 200
    assert answer.status_code == 400
    assert "input: List should have at most 500 items after validation, not 501" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"background": True}, "background"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": []}, "input"),
    ],
)
def test_a_response_beyond_text_is_refused_by_name(served: Service, change: dict[str, Any], param: str) -> None:
    neutral = {
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": None},
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
        "tools": [],
        "top_logprobs": 0,
        "store": False,
    }
    with client(served) as http:
        assert http.post(RESPONSES, json={"input": "hi", **neutral}).is_success
        answer = http.post(RESPONSES, json={"input": "hi", **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_stream_of_a_response_whose_policy_dies_ends_with_an_error(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    made = with_chat(served)
    with client(served) as http:
        http.post(RESPONSES, json={"input": "red"})
        made[0].die_after = 1
        app = openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0)
        with pytest.raises(openai.APIError, match="the parrot died"):
            for _ in app.responses.create(model="promoted", input="red green blue", stream=True):
                pass


def test_a_stop_does_not_wait_for_ever_for_a_policy_that_hangs(tmp_path: Path) -> None:
    served = service(file_store(tmp_path), stop_seconds=0.2)
    made = with_chat(served, seconds=3600)

    async def run() -> None:
        app = create_app(served)
        async with app.router.lifespan_context(app):
            asked = asyncio.create_task(begin(served, ChatRequest.model_validate(ASK), "chatcmpl"))
            while not (made and made[0].asked):
                await asyncio.sleep(0.01)
        await asyncio.wait([asked])

    asyncio.run(run())
    assert not made[0].alive
    assert served.store.completions() == []


def test_the_round_is_looked_up_once_a_request_and_not_while_others_wait_to_write(
    served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    writing = False
    write = served.store.database.write

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal writing
        writing = True
        return write(*args, **kwargs)

    with client(served) as http:
        id = http.post(CHAT, json=ASK).json()["id"]
        monkeypatch.setattr(Service, "round", property(lambda self: looked.append(writing) or 0))
        monkeypatch.setattr(served.store.database, "write", watched)
        items = [{"response_id": id, "thumb": "up"}, {"response_id": id, "comment": "good"}] * 20
        assert http.post("/v1/feedback/bulk", json={"items": items}).json()["accepted"] == 40
        writing = False
        assert http.post("/v1/feedback", json=items[0]).is_success
    assert looked == [False, False]
