"""Another server behind the chat endpoint: what passes to it and back, what is stored, and how it fails."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from samples.server import client, file_store, service

from rlhf_loop.feedback.validation import validate
from rlhf_loop.recipe import Validation
from rlhf_loop.records import Artifact
from rlhf_loop.rows.labels import labels_from_feedback
from rlhf_loop.server.chat import upstream
from rlhf_loop.server.chat.engine import PolicyLost
from rlhf_loop.server.chat.policies import Policies
from rlhf_loop.server.chat.upstream import Upstream
from rlhf_loop.server.service import Service

HI = [{"role": "user", "content": "What is the weather?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 3}}

Behaviour = Callable[[dict[str, Any]], httpx.Response]


class OtherServer:
    """Answers as `behave` says, and keeps what it was asked."""

    def __init__(self, behave: Behaviour, models: Iterable[str] = ("base",)):
        self.behave, self.models = behave, list(models)
        self.asked: list[dict[str, Any]] = []
        self.away = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            raise httpx.ConnectError("refused")
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": name} for name in self.models]})
        self.asked.append(json.loads(request.content))
        return self.behave(self.asked[-1])


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> Behaviour:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return lambda body: httpx.Response(200, json={"id": "up", "choices": [choice], "usage": USAGE, **more})


def said(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": "up", "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}], "usage": None}


def lines(*events: object, end: bytes = b"data: [DONE]\n\n") -> bytes:
    texts = (event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events)
    return b"".join(f"data: {text}\n\n".encode() for text in texts) + end


def streamed(*pieces: bytes, fails: bool = False) -> Behaviour:
    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        if fails:
            raise httpx.ReadError("dropped")

    return lambda body: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content())


def serving(tmp_path: Path, behave: Behaviour, models: Iterable[str] = ("base",)) -> tuple[Service, OtherServer]:
    served, other = service(file_store(tmp_path)), OtherServer(behave, models)

    async def promoted() -> Artifact:
        return Artifact(id="base", kind="policy", path="base", round=0)

    transport = httpx.MockTransport(other)
    make = lambda policy: Upstream("http://other/v1", policy.id, transport=transport)  # noqa: E731
    served.policies = Policies(promoted, make, poll_seconds=0.02, wait_seconds=1, back_off=(0.02,))
    return served, other


def ask(served: Service, **values: Any) -> httpx.Response:
    with client(served) as http:
        return http.post("/v1/chat/completions", json={"messages": HI, **values})


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    texts = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


# -- what passes, and is stored ----------------------------------------------------------------------------------------


def test_calls_of_tools_pass_both_ways_and_are_stored_but_not_trained_on(tmp_path: Path) -> None:
    served, other = serving(tmp_path, whole({"content": None, "tool_calls": [CALL]}, "tool_calls"))
    with client(served) as http:
        asked = {"messages": HI, "tools": [WEATHER], "tool_choice": "auto", "user": "ann", "metadata": {"tags": "sky"}}
        answer = http.post("/v1/chat/completions", json=asked).json()
        thumb = http.post("/v1/feedback", json={"response_id": answer["id"], "thumb": "up"})
    assert (other.asked[0]["tools"], other.asked[0]["tool_choice"]) == ([WEATHER], "auto")
    assert not {"user", "metadata"} & set(other.asked[0])
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert choice["finish_reason"] == "tool_calls"
    assert answer["usage"] == USAGE
    (completion,), (prompt,) = served.store.completions(), served.store.prompts()
    assert json.loads(completion.text) == {"tool_calls": [CALL]}
    assert (completion.tokens, completion.finish_reason, completion.sampling["tools"]) == (7, "stop", [WEATHER])
    assert (prompt.split, prompt.tags) == ("untrained", ("sky",))
    assert thumb.is_success
    feedback, by_id = served.store.feedback(), {completion.id: completion}
    report = validate(feedback, by_id, {prompt.id: prompt}, Validation())
    assert (report.counts["untrained"], report.set_aside, report.usable) == (1, feedback, [])
    assert labels_from_feedback(report.usable, by_id, {prompt.id: prompt})[0] == []


def test_streamed_calls_of_tools_are_put_together(tmp_path: Path) -> None:
    def call(index: int, **values: Any) -> dict[str, Any]:
        return said({"tool_calls": [{"index": index, **values}]})

    second = {**CALL, "id": "call_2"}
    pieces = [
        said({"role": "assistant", "content": None}),
        call(0, id="call_1", type="function", function={"name": "weather", "arguments": ""}),
        call(0, function={"arguments": '{"city": '}),
        call(1, id="call_2", type="function", function={"name": "weather", "arguments": '{"city": "Paris"}'}),
        call(0, function={"arguments": '"Paris"}'}),
        said({}, "tool_calls"),
        {"choices": [], "usage": USAGE},
    ]
    served, other = serving(tmp_path, streamed(lines(*pieces)))
    with client(served) as http:
        app = openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0)
        with app.chat.completions.stream(model="promoted", messages=HI, tools=[WEATHER]) as stream:  # type: ignore[list-item]
            got = stream.get_final_completion()
    calls = got.choices[0].message.tool_calls or []
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
        ("call_1", "weather", '{"city": "Paris"}'),
        ("call_2", "weather", '{"city": "Paris"}'),
    ]
    assert got.choices[0].finish_reason == "tool_calls"
    assert other.asked[0]["stream_options"] == {"include_usage": True}
    assert json.loads(served.store.completions()[0].text) == {"tool_calls": [CALL, second]}


def test_a_history_passes_as_it_came_but_for_what_says_nothing(tmp_path: Path) -> None:
    served, other = serving(tmp_path, whole({"content": "sunny"}))
    dumped = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
              "function_call": None, "tool_calls": [CALL]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sun"}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 600}}
    last = {"role": "user", "name": "ann", "content": [{"type": "text", "text": "sure?"}, image]}
    empty = {"role": "assistant", "content": None, "tool_calls": []}
    asked = [{"role": "developer", "content": "be brief"}, *HI, dumped, result, empty, last]
    assert ask(served, messages=asked, tools=[WEATHER]).is_success
    assert other.asked[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        result,
        {"role": "assistant", "content": ""},
        last,
    ]
    (prompt,) = served.store.prompts()
    assert [message["role"] for message in prompt.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert json.loads(prompt.messages[2]["content"]) == {"tool_calls": [CALL]}
    text = prompt.messages[-1]["content"]
    assert text.startswith("sure?")
    assert "sha256:" in text
    assert len(text) < 200


def test_what_asks_for_nothing_does_not_pass_and_what_does_is_kept_with_the_answer(tmp_path: Path) -> None:
    content = [{"token": "{}", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    choice = {"index": 0, "message": {"content": "{}"}, "finish_reason": "stop", "logprobs": {"content": content}}
    served, other = serving(tmp_path, lambda body: httpx.Response(200, json={"choices": [choice], "provider": "x"}))
    asks = {"response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 2, "temperature": 0.5}
    nothing = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "logit_bias": {}, "stop": None}
    answer = ask(served, **asks, **nothing, max_completion_tokens=9, seed=-3, safety_identifier="ann").json()
    body = other.asked[0]
    assert body.items() >= {**asks, "max_completion_tokens": 9, "seed": -3, "n": 1, "model": "base"}.items()
    assert not {*nothing, "max_tokens"} & set(body)
    assert answer["choices"][0]["logprobs"] == {"content": content}
    assert (answer["provider"], answer["usage"]) == ("x", None)
    (completion,), (prompt,) = served.store.completions(), served.store.prompts()
    assert completion.sampling["response_format"] == {"type": "json_object"}
    assert "safety_identifier" not in completion.sampling
    assert (completion.seed, prompt.split) == (-3, "train")


def test_reasoning_that_comes_apart_is_passed_on_and_stored(tmp_path: Path) -> None:
    pieces = [
        said({"reasoning_content": "let me "}),
        said({"reasoning_content": "see"}),
        said({"content": "4"}, "stop"),
    ]
    served, _ = serving(tmp_path, streamed(lines(*pieces)))
    got = chunks(ask(served, stream=True))
    assert [c["choices"][0]["delta"].get("reasoning_content") for c in got][1:3] == ["let me ", "see"]
    assert served.store.completions()[0].text == "<think>\nlet me see\n</think>\n\n4"


@pytest.mark.parametrize(
    "behave",
    [
        streamed(lines(said({"content": "a\u2028b\u0085c"}, "stop"))),
        streamed(*(bytes([byte]) for byte in lines(said({"content": "a\u2028b\u0085c"}, "stop")))),
        streamed(lines(said({"content": "a\u2028b\u0085c"}, "stop")).replace(b"\n", b"\r\n")),
        streamed(b": ping\n\nevent: message\n", lines(said({"content": "a\u2028b\u0085c"}, "stop"), end=b"")),
        streamed(lines(said({"content": "a\u2028b\u0085c"}))),
        streamed(lines(said({"content": "a\u2028b\u0085c"}, "eos_token"), end=b"data: [DONE]")),
        whole({"content": "a\u2028b\u0085c"}),
    ],
    ids=["separators", "bytes", "crlf", "comments", "no-reason", "other-reason", "whole"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_read_however_it_is_written(tmp_path: Path, behave: Behaviour, stream: bool) -> None:
    served, _ = serving(tmp_path, behave)
    answer = ask(served, stream=stream)
    assert answer.is_success, answer.text
    if stream:
        deltas = [c["choices"][0]["delta"].get("content") for c in chunks(answer)]
        assert "".join(filter(None, deltas)) == "a\u2028b\u0085c"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "a\u2028b\u0085c"
    (completion,) = served.store.completions()
    assert (completion.text, completion.finish_reason) == ("a\u2028b\u0085c", "stop")


def test_the_usage_of_a_stream_is_the_other_server_s_and_null_where_it_gives_none(tmp_path: Path) -> None:
    last = {"choices": [], "usage": USAGE}
    for number, (events, usage) in enumerate([([last], USAGE), ([], None)]):
        (tmp_path / str(number)).mkdir()
        served, _ = serving(tmp_path / str(number), streamed(lines(said({"content": "x"}, "stop"), *events)))
        got = chunks(ask(served, stream=True, stream_options={"include_usage": True}))
        assert (got[-1]["choices"], got[-1]["usage"]) == ([], usage)


@pytest.mark.parametrize(("reason", "kept"), [("length", "length"), ("content_filter", "length"), ("stop", "stop")])
def test_an_answer_that_was_cut_off_is_not_kept_as_whole(tmp_path: Path, reason: str, kept: str) -> None:
    served, _ = serving(tmp_path, whole({"content": "x"}, reason))
    assert ask(served).json()["choices"][0]["finish_reason"] == reason
    assert served.store.completions()[0].finish_reason == kept


# -- how it fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected", "words", "param"),
    [
        (400, {"error": {"message": "too long", "param": "messages", "code": "x"}}, {}, 400, "too long", "messages"),
        (422, {"detail": [{"msg": "bad"}]}, {}, 422, "bad", None),
        (404, {"object": "error", "message": "no such model"}, {}, 400, "no such model", None),
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "17"}, 429, "slow down", None),
        (500, "<html>", {}, 503, "answers 500", None),
        (401, {"error": "who?"}, {}, 503, "RLHF_LOOP_UPSTREAM_KEY", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_pass_and_breakdowns_are_the_service_s(
    tmp_path: Path, status: int, body: Any, headers: dict, expected: int, words: str, param: str | None, stream: bool
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    served, other = serving(tmp_path, lambda asked: httpx.Response(status, content=content, headers=headers))
    answer = ask(served, stream=stream)
    assert answer.status_code == expected
    error = answer.json()["error"]
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    if expected in (429, 503):
        assert answer.headers["Retry-After"] == headers.get("Retry-After", "5")
    assert len(other.asked) == (2 if expected == 503 else 1)  # what is refused is not asked again
    assert served.store.completions() == []


@pytest.mark.parametrize(
    "behave",
    [
        streamed(lines(said({"content": "half of"}), end=b""), fails=True),
        streamed(lines(said({"content": "half of"}), {"error": {"message": "no memory", "code": 500}}, end=b"")),
        streamed(lines(said({"content": "half of"}), end=b'event: error\ndata: {"message": "no memory"}\n\n')),
        streamed(lines(said({"content": "half of"}), end=b"")),
        streamed(lines(said({"content": "half of"}), "{not json")),
    ],
    ids=["dropped", "error", "error-event", "cut", "garbage"],
)
def test_an_answer_that_breaks_off_ends_with_an_error_and_is_not_stored(tmp_path: Path, behave: Behaviour) -> None:
    served, _ = serving(tmp_path, behave)
    answer = ask(served, stream=True)
    assert chunks(answer)[-1]["error"]["code"] == 503
    assert "[DONE]" not in answer.text
    (tmp_path / "again").mkdir()
    assert ask(serving(tmp_path / "again", behave)[0]).status_code == 503
    assert served.store.completions() == []


def test_a_server_that_writes_fewer_answers_than_asked_is_named(tmp_path: Path) -> None:
    served, _ = serving(tmp_path, whole({"content": "x"}))
    answer = ask(served, n=3)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert served.store.completions() == []


def test_readiness_follows_whether_the_other_server_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LIST_SECONDS", 0.02)
    served, other = serving(tmp_path, whole({"content": "x"}))

    def until(status: int) -> None:
        deadline = time.monotonic() + 10
        while http.get("/healthz/ready").status_code != status and time.monotonic() < deadline:
            time.sleep(0.01)
        assert http.get("/healthz/ready").status_code == status

    with client(served) as http:
        until(200)
        other.away = True
        until(503)
        answer = http.post("/v1/chat/completions", json={"messages": HI})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, 503)
        other.away = False
        until(200)
        assert http.post("/v1/chat/completions", json={"messages": HI}).is_success


def test_a_policy_that_cannot_be_started_is_closed() -> None:
    closed: list[str] = []

    class Broken(Upstream):
        async def start(self) -> None:
            raise PolicyLost("away")

        async def close(self) -> None:
            closed.append(self.policy_id)
            await super().close()

    async def promoted() -> Artifact:
        return Artifact(id="base", kind="policy", path="base", round=0)

    async def run() -> None:
        policies = Policies(promoted, lambda policy: Broken("http://other/v1", policy.id), poll_seconds=0.01)
        policies.begin()
        await asyncio.sleep(0.1)
        await policies.close()

    asyncio.run(run())
    assert closed == ["base"]


def test_a_policy_that_stays_away_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Upstream):
        async def start(self) -> None:
            raise PolicyLost("away")

    async def promoted() -> Artifact:
        return Artifact(id="base", kind="policy", path="base", round=0)

    async def run() -> int:
        policies = Policies(
            promoted, lambda policy: Away("http://other/v1", policy.id), poll_seconds=0.01, back_off=(0.01,)
        )
        policies.begin()
        while policies.restarts < 10:
            await asyncio.sleep(0.01)
        await policies.close()
        return policies.restarts

    tries = asyncio.run(run())
    said = [record.fields["attempt"] for record in caplog.records if record.message == "the policy does not start"]
    assert said == [n for n in (1, 2, 4, 8, 16, 32) if n <= tries]
