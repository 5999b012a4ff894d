"""Chat: OpenAI's API, what is stored of it, promotions, crashes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient
from samples.server import client, file_store, service, with_chat

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Artifact
from rlhf_loop.server.chat import answering
from rlhf_loop.server.service import Service

ASK = {"model": "promoted", "messages": [{"role": "user", "content": "red green blue"}]}


@pytest.fixture
def served(tmp_path: Path) -> Service:
    return service(file_store(tmp_path))


def test_an_answer_is_openai_s_and_is_stored_with_its_policy(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        answer = http.post("/v1/chat/completions", json={**ASK, "n": 2, "user": "ann@example.org", "temperature": 0.5})
    body = answer.json()
    assert answer.status_code == 200, body
    assert [choice["message"]["content"] for choice in body["choices"]] == [
        "red green blue says base 0",
        "red green blue says base 1",
    ]
    assert body["model"] == "base"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    first, second = served.store.completions()
    assert (first.id, second.id) == (body["id"], body["id"] + "-1")
    assert (first.policy, first.sampling["temperature"], first.text) == ("base", 0.5, "red green blue says base 0")
    (prompt,) = served.store.prompts()
    assert (prompt.split, prompt.source, prompt.messages[0]["content"]) == ("train", "chat", "red green blue")


def test_the_openai_client_works_whole_and_streamed(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        app = openai.OpenAI(base_url="http://localhost/v1", api_key="any", http_client=http, max_retries=0)
        assert {model.id for model in app.models.list()} == {"promoted", "base"}
        whole = app.chat.completions.create(model="promoted", messages=ASK["messages"])
        assert whole.choices[0].message.content == "red green blue says base 0"
        texts: dict[int, str] = {0: "", 1: ""}
        finishes, ids = [], set()
        stream = app.chat.completions.create(
            model="promoted", messages=ASK["messages"], n=2, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            ids.add(chunk.id)
            if not chunk.choices:
                assert chunk.usage is not None
                assert chunk.usage.completion_tokens == 12
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                finishes += [choice.finish_reason] if choice.finish_reason else []
        with pytest.raises(openai.NotFoundError, match="not served now"):
            app.chat.completions.create(model="gpt-5", messages=ASK["messages"])
    assert texts == {0: "red green blue says base 0", 1: "red green blue says base 1"}
    assert finishes == ["stop", "stop"]
    assert {c.id for c in served.store.completions()} >= ids
    assert len(served.store.prompts()) == 1  # the same conversation is the same prompt


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tools": [{}]}, "tools"),
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"metadata": {"tags": [{}]}}, "metadata.tags"),
        ({"metadata": {"conversation_id": []}}, "metadata.conversation_id"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(served: Service, change: dict, field: str) -> None:
    with_chat(served)
    with client(served) as http:
        answer = http.post("/v1/chat/completions", json={**ASK, **change})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"] or answer.json()["error"]["message"]).startswith(field)
    assert served.store.completions() == []


def test_names_that_no_database_takes_are_stored_all_the_same(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        body = json.dumps({**ASK, "metadata": {"conversation_id": "\ud800", "tags": "\ud800, law"}})
        answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200
    assert served.store.prompts()[0].tags == ("?", "law")


def test_without_a_policy_chat_says_what_to_do(served: Service) -> None:
    served.chat_off = "the run has no policy yet"
    with client(served) as http:
        answer = http.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 503
    assert "no policy yet" in answer.json()["error"]["message"]


def test_what_is_stored_is_redacted_and_what_is_shown_is_not(served: Service) -> None:
    with_chat(served)
    said = {**ASK, "messages": [{"role": "user", "content": "write to ann@example.org please"}]}
    with client(served) as http:
        answer = http.post("/v1/chat/completions", json=said).json()
    assert "ann@example.org" in answer["choices"][0]["message"]["content"]
    assert "ann@example.org" not in served.store.completions()[0].text
    assert "ann@example.org" not in served.store.prompts()[0].messages[0]["content"]


def test_a_conversation_is_one_group_and_its_tags_are_kept(served: Service) -> None:
    with_chat(served)
    metadata = {"conversation_id": "c7", "tags": "cooking, soup"}
    longer = [*ASK["messages"], {"role": "assistant", "content": "hm"}, {"role": "user", "content": "more"}]
    with client(served) as http:
        for messages in (ASK["messages"], longer):
            assert http.post("/v1/chat/completions", json={"messages": messages, "metadata": metadata}).is_success
        assert http.post("/v1/chat/completions", json=ASK).is_success
    first, second, other = served.store.prompts()
    assert first.group == second.group != other.group
    assert first.tags == ("cooking", "soup")


def test_an_answer_nobody_waits_for_any_more_is_stored_all_the_same(served: Service) -> None:
    with_chat(served, seconds=0.05)
    with client(served) as http:
        with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
            next(answer.iter_lines())
    assert served.store.completions()[0].text == "red green blue says base 0"


def test_an_answer_is_stored_before_its_end_is_sent(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["finish_reason"]:
                    assert len(served.store.completions()) == 1
                    break
            else:
                pytest.fail("no end")


def test_a_promotion_takes_over_and_no_answer_is_dropped(served: Service) -> None:
    made = with_chat(served, seconds=0.02)
    models: list[str] = []
    failures: list[object] = []
    stop = threading.Event()

    def ask(http: TestClient) -> None:
        while not stop.is_set():
            answer = http.post("/v1/chat/completions", json=ASK)
            (models.append(answer.json()["model"]) if answer.is_success else failures.append(answer.text))

    with client(served) as http:
        http.post("/v1/chat/completions", json=ASK)
        askers = [threading.Thread(target=ask, args=(http,)) for _ in range(4)]
        for asker in askers:
            asker.start()
        time.sleep(0.3)
        served.store.add_artifact(Artifact(id="better", kind="policy", path="x", round=1, parent="base"))
        served.store.promote("better")
        deadline = time.monotonic() + 10
        while models[-4:] != ["better"] * 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        for asker in askers:
            asker.join()
        assert http.get("/v1/models").json()["data"][1]["id"] == "better"
    assert failures == []
    assert models[0] == "base"
    assert models[-1] == "better"
    assert [parrot.policy_id for parrot in made] == ["base", "better"]
    assert not made[0].alive  # it was ended when its last answer was written
    assert {c.policy for c in served.store.completions()} == {"base", "better"}


def test_a_policy_that_dies_is_started_again_and_the_answer_begun_again(served: Service) -> None:
    made = with_chat(served)
    with client(served) as http:
        http.post("/v1/chat/completions", json=ASK)
        made[0].die_after = 1
        answer = http.post("/v1/chat/completions", json=ASK)
        assert answer.json()["choices"][0]["message"]["content"] == "red green blue says base 0"
    assert len(made) == 2


def test_a_stream_whose_policy_dies_ends_with_an_error_and_is_not_stored(served: Service) -> None:
    made = with_chat(served)
    with client(served) as http:
        http.post("/v1/chat/completions", json=ASK)
        made[0].die_after = 1
        text = http.post("/v1/chat/completions", json={**ASK, "stream": True}).text
    assert '"code": 503' in text
    assert "[DONE]" not in text
    assert len(served.store.completions()) == 1


def test_while_no_policy_can_be_started_chat_answers_503_with_retry_after(served: Service) -> None:
    with_chat(served)
    assert served.policies is not None
    served.policies.wait_seconds = 0.2

    def broken(policy: Artifact) -> object:
        raise RuntimeError("no memory")

    served.policies.make = broken  # type: ignore[assignment]
    with client(served) as http:
        answer = http.post("/v1/chat/completions", json=ASK)
        assert http.get("/healthz/ready").status_code == 503
        assert http.get("/healthz").status_code == 200
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert "no memory" in answer.json()["error"]["message"]


def test_what_a_policy_refuses_is_the_caller_s_mistake(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        said = {"messages": [{"role": "user", "content": "refuse this"}]}
        assert http.post("/v1/chat/completions", json=said).status_code == 400
        assert http.post("/v1/chat/completions", json={**said, "stream": True}).status_code == 400


def test_a_store_in_memory_serves_too() -> None:
    with Store.open(":memory:") as store:
        served = service(store)
        with_chat(served)
        with client(served) as http:
            assert http.post("/v1/chat/completions", json=ASK).is_success


@pytest.mark.parametrize(
    ("current", "named"), [("promoted", "`promoted`"), ("base", "`promoted` or `base`"), ("", "`promoted`")]
)
def test_a_model_that_is_not_served_is_told_with_those_that_are_once_each(current: str, named: str) -> None:
    said = answering.unknown_model("other", current)["message"]
    assert said == f"model: `other` is not served now; use {named}"
