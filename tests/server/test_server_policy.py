"""The process that holds a policy: its answers, its end, and chats through it with a real (tiny) model."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from samples.server import client, file_store, promoted_policy, service

from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Artifact, Message
from rlhf_loop.server.chat.engine import Ask, Delta, PolicyLost, PolicyRefused, Started
from rlhf_loop.server.chat.policies import Policies
from rlhf_loop.server.chat.policy_process import OwnProcess
from rlhf_loop.server.chat.upstream import Upstream

HI = (Message(role="user", content="Name a colour."),)


def ask(**values: object) -> Ask:
    given = {
        "messages": HI, "n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 6, "stop": (), "seed": 7,
        "round": 0, "key": "p",
    }  # fmt: skip
    return Ask(**{**given, **values})  # type: ignore[arg-type]


async def texts(engine: OwnProcess | Upstream, wanted: Ask) -> list[str]:
    said = [""] * wanted.n
    async for event in engine.stream(wanted):
        if isinstance(event, Delta):
            said[event.choice] += event.text
    return said


def own(tiny_policy: Path, name: str = "base") -> OwnProcess:
    return OwnProcess(name, str(tiny_policy), {"model": str(tiny_policy), "dtype": "float32"}, 4096)


@pytest.mark.slow
def test_an_answer_is_that_of_the_engine_whoever_it_is_written_beside(tiny_policy: Path) -> None:
    from rlhf_loop.generation.transformers_engine import sample
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.recipe import Generation, Policy

    model, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"), merged=True)
    settings = Generation(samples_per_prompt=3, max_new_tokens=12)
    (expected,) = sample(model, tokenizer, [HI], [(7, 0, "p")], settings)

    async def run() -> list[list[str]]:
        engine = own(tiny_policy)
        await engine.start()
        try:
            wanted = ask(n=3, max_tokens=12)
            others = [
                ask(max_tokens=30, key=f"q{n}", temperature=0.0 if n % 2 else 0.7, top_p=0.9, top_k=5) for n in range(4)
            ]
            alone = await texts(engine, wanted)
            beside = await asyncio.gather(*(texts(engine, other) for other in others), texts(engine, wanted))
            return [alone, beside[-1]]
        finally:
            await engine.close()

    alone, beside = asyncio.run(run())
    assert alone == [answer.text for answer in expected]
    assert beside == alone


@pytest.mark.slow
def test_streams_end_at_stop_texts_and_lengths_and_refusals_are_told(tiny_policy: Path) -> None:
    async def run() -> None:
        engine = own(tiny_policy)
        await engine.start()
        try:
            (whole,) = await texts(engine, ask(max_tokens=20))
            middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
            (cut,) = await texts(engine, ask(max_tokens=20, stop=(middle,)))
            assert cut == whole[: whole.index(middle)]
            events = [event async for event in engine.stream(ask(max_tokens=3))]
            assert isinstance(events[0], Started)
            assert events[0].prompt_tokens > 3
            assert isinstance(events[-1], Delta)
            assert (events[-1].finish, events[-1].tokens, len(events[-1].token_ids or ())) == ("length", 3, 3)
            with pytest.raises(PolicyRefused, match="no room"):
                await texts(engine, ask(messages=(Message(role="user", content="word " * 5000),)))
            stream = engine.stream(ask(max_tokens=400))
            await anext(stream)
            await stream.aclose()  # nobody waits any more
            assert await texts(engine, ask(max_tokens=20)) == [whole]
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_killed_process_loses_its_answers_and_says_so(tiny_policy: Path) -> None:
    async def run() -> None:
        engine = own(tiny_policy)
        await engine.start()
        stream = engine.stream(ask(max_tokens=400))
        await anext(stream)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(PolicyLost):
            async for _ in stream:
                pass
        assert not engine.alive
        with pytest.raises(PolicyLost):
            await texts(engine, ask())
        await engine.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_policy_that_is_not_there_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        engine = OwnProcess("gone", str(tmp_path / "nothing"), {"model": str(tmp_path / "nothing")}, 4096)
        with pytest.raises(PolicyLost, match="nothing"):
            await engine.start()

    asyncio.run(run())


@pytest.mark.slow
def test_a_promotion_under_load_and_a_crash_drop_no_answer(tiny_policy: Path, tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    store, made = served.store, []
    store.add_artifact(Artifact(id="base", kind="policy", path="base", round=0))
    store.promote("base")

    async def promoted() -> Artifact | None:
        return await asyncio.to_thread(promoted_policy, store)

    def make(policy: Artifact) -> OwnProcess:
        made.append(own(tiny_policy, policy.id))
        return made[-1]

    served.policies = Policies(promoted, make, poll_seconds=0.1, wait_seconds=120)
    answers: list[tuple[str, str]] = []
    failures: list[str] = []
    stop = threading.Event()
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 12}

    with client(served) as http:

        def talk() -> None:
            while not stop.is_set():
                answer = http.post("/v1/chat/completions", json=body)
                if answer.is_success:
                    answers.append((answer.json()["id"], answer.json()["model"]))
                else:
                    failures.append(answer.text)

        def until(done: object) -> None:
            deadline = time.monotonic() + 120
            while not done() and time.monotonic() < deadline:  # type: ignore[operator]
                time.sleep(0.05)

        people = [threading.Thread(target=talk) for _ in range(4)]
        for person in people:
            person.start()
        until(lambda: len(answers) > 8)
        store.add_artifact(Artifact(id="better", kind="policy", path="x", round=1, parent="base"))
        store.promote("better")
        until(lambda: [model for _, model in answers[-8:]] == ["better"] * 8)
        os.kill(made[-1].pid, signal.SIGKILL)
        count = len(answers)
        until(lambda: len(answers) > count + 8)
        stop.set()
        for person in people:
            person.join()
    assert failures == []
    assert [engine.policy_id for engine in made] == ["base", "better", "better"]
    policy_of = {completion.id: completion.policy for completion in store.completions()}
    assert policy_of == dict(answers)


def test_a_conversation_that_waits_for_room_is_read_once(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_loop.generation import worker
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.recipe import Policy

    read: list[str] = []
    encode = worker.encode_prompts

    def counted(tokenizer: object, conversations: list) -> list[list[int]]:
        read.append(conversations[0][0]["content"])
        return encode(tokenizer, conversations)

    monkeypatch.setattr(worker, "encode_prompts", counted)
    model, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"), merged=True)
    said: list[dict] = []
    busy = worker.Worker(model, tokenizer, 1, said.append)
    for name in ("first", "second"):
        values = {"n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "stop": [], "seed": 1}
        messages = [{"role": "user", "content": name}]
        busy.take({"id": name, "messages": messages, **values, "round": 0, "key": name})
    while not busy.idle:
        busy.work()
    assert [message["id"] for message in said if "finish" in message] == ["first", "second"]
    assert read == ["first", "second"]


def test_who_is_promoted_is_asked_often_and_never_read_with_all_it_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_loop.server.run import set_up_chat

    served = service(file_store(tmp_path))
    for name in ("base", "better"):
        served.store.add_artifact(Artifact(id=name, kind="policy", path=name, round=0))
    read: list[bool] = []
    whole = served.store.artifacts
    monkeypatch.setattr(served.store, "artifacts", lambda **how: (read.append(how["with_feedback"]), whole(**how))[1])
    set_up_chat(served, "http://other/v1")
    assert served.policies is not None
    answers = []
    for promote in (None, "base", None, "better", None, "base"):
        if promote:
            served.store.promote(promote)
        found = asyncio.run(served.policies.promoted())  # type: ignore[arg-type]
        answers.append(found.id if found else None)
    assert answers == ["upstream", "base", "base", "better", "better", "base"]
    assert not any(read)


# -- another server ----------------------------------------------------------------------------------------------------


def other_server(models: list[str]) -> httpx.ASGITransport:
    """An OpenAI-compatible server that streams two words a choice."""
    app = FastAPI()

    @app.get("/v1/models")
    def list_models() -> dict[str, object]:
        return {"data": [{"id": model} for model in models]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        wanted = await request.json()
        assert wanted["stream"]

        def chunks() -> object:
            for n in range(wanted["n"]):
                for word in ("hello ", wanted["model"]):
                    yield f'data: {{"choices": [{{"index": {n}, "delta": {{"content": "{word}"}}}}]}}\n\n'
                yield f'data: {{"choices": [{{"index": {n}, "delta": {{}}, "finish_reason": "stop"}}]}}\n\n'
            if wanted["model"] != "cut":
                yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")  # type: ignore[arg-type]

    return httpx.ASGITransport(app=app)


@pytest.mark.parametrize(("models", "policy"), [(["x", "base"], "base"), (["x"], "upstream:x")])
def test_another_server_answers_as_the_policy_only_where_it_serves_it(models: list[str], policy: str) -> None:
    async def run() -> None:
        engine = Upstream("http://other/v1", "base", transport=other_server(models))
        await engine.start()
        events = [event async for event in engine.stream(ask(n=2))]
        await engine.close()
        assert isinstance(events[0], Started)
        assert events[0].policy_id == policy
        said = "".join(event.text for event in events if isinstance(event, Delta) and event.choice == 1)
        assert said == f"hello {policy.removeprefix('upstream:')}"

    asyncio.run(run())


def test_what_another_server_refuses_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    app = FastAPI()
    app.get("/v1/models")(lambda: {"data": [{"id": "x"}]})

    @app.post("/v1/chat/completions", status_code=400)
    def chat() -> dict[str, str]:
        return {"error": "too long"}

    async def promoted() -> Artifact:
        return Artifact(id="base", kind="policy", path="base", round=0)

    served = service(file_store(tmp_path))
    make = lambda policy: Upstream("http://other/v1", policy.id, transport=httpx.ASGITransport(app=app))  # noqa: E731
    served.policies = Policies(promoted, make, poll_seconds=0.05, wait_seconds=5)
    with client(served) as http:
        for stream in (False, True):
            answer = http.post("/v1/chat/completions", json={"messages": list(HI), "stream": stream})
            assert answer.status_code == 400
            assert "too long" in answer.json()["error"]["message"]


def test_another_server_that_is_away_is_a_lost_policy() -> None:
    async def run() -> None:
        with pytest.raises(PolicyLost, match="--upstream"):
            await Upstream("http://127.0.0.1:9/v1", "base").start()
        with pytest.raises(PolicyLost, match="no model"):
            await Upstream("http://other/v1", "base", transport=other_server([])).start()

    asyncio.run(run())


def test_a_policy_of_4_bits_is_not_served_where_bitsandbytes_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_loop.server.run import set_up_chat

    recipe = Recipe.load(Path(__file__).parents[2] / "recipes" / "smoke.yaml")
    of_4_bits = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"quantization": "nf4"})})
    served = service(file_store(tmp_path), recipe=of_4_bits, run_dir=tmp_path)
    monkeypatch.setattr(
        "rlhf_loop.server.run.open_run", lambda folder: SimpleNamespace(promoted_id=lambda store: "base")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    set_up_chat(served, None)
    assert served.policies is None
    assert "pip install 'rlhf-loop[qlora]'" in served.chat_off
