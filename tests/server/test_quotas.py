"""What a project's service may use in a day: kept in the project, counted with the answers, told when it is spent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from samples.cli import rlhf_loop
from samples.server import client, service, token, with_chat

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import quotas
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.store_address import in_project
from rlhf_loop.server.chat import answering
from rlhf_loop.server.chat.request import ChatRequest

NOON = 1_760_011_200.0  # 2025-10-09 12:00 UTC
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PAGE = {"Sec-Fetch-Site": "same-origin"}


def ask(here: TestClient, words: str = "one two three", **values: Any) -> Any:
    return here.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": words}], **values})


def test_answers_and_their_tokens_count_until_the_quota_is_spent(store: Store) -> None:
    served = service(store)
    with_chat(served)
    quotas.set_quota(store, {"answers": 3})
    with client(served) as here:
        assert [ask(here).status_code, ask(here, n=2).status_code] == [200, 200]
        assert quotas.usage(store).used == {"answers": 3, "tokens": 18}  # of the parrot: the words, and three more
        refused = ask(here)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "insufficient_quota"
        assert "3 answers a day is spent" in refused.json()["error"]["message"]
        assert 0 < int(refused.headers["Retry-After"]) <= 86400
        assert ask(here, stream=True).status_code == 429
        assert here.post("/v1/responses", json={"input": "Hello"}).status_code == 429
        assert store.completion_count() == 3
        assert "It is spent" in here.get("/", headers={"Accept": "text/html"}).text
        quotas.set_quota(store, {"answers": None, "tokens": 20})  # while it runs
        assert [ask(here).status_code, ask(here).status_code] == [200, 429]
        quotas.set_quota(store, {"tokens": None})
        assert ask(here).status_code == 200


def test_an_answer_that_is_not_stored_is_not_counted(store: Store) -> None:
    served = service(store)
    with_chat(served)
    with client(served) as here:
        assert ask(here, "refuse this").status_code == 400
    assert quotas.usage(store).used == {"answers": 0, "tokens": 0}


def test_a_day_begins_at_midnight_utc(store: Store) -> None:
    quotas.set_quota(store, {"answers": 2})
    with store.transaction() as transaction:
        quotas.note_used(transaction, NOON, answers=2, tokens=9)
    noon = quotas.usage(store, NOON)
    assert (noon.spent, noon.seconds_left, noon.used["tokens"]) == ("answers", 12 * 3600, 9)
    assert quotas.usage(store, NOON + 12 * 3600 - 1).spent == "answers"
    assert quotas.usage(store, NOON + 12 * 3600).used == {"answers": 0, "tokens": 0}
    with store.transaction() as transaction:
        quotas.note_used(transaction, NOON + 86400, answers=1)
    assert quotas.usage(store, NOON + 86400).used == {"answers": 1, "tokens": 0}


def test_no_more_answers_are_begun_at_once_than_may_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(answer: answering.Answer) -> None:
        await asyncio.sleep(0.2)

    async def at_once() -> list[Any]:
        body = ChatRequest.model_validate(HELLO)
        asked = [answering.begin(served, body, "chatcmpl") for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    served = service(store)
    with_chat(served)
    monkeypatch.setattr(answering, "MOST_WAITING", 1)
    monkeypatch.setattr(answering.Answer, "write", write)
    begun = asyncio.run(at_once())
    assert [one.status_code for one in begun if isinstance(one, HTTPException)] == [429] * 3


def test_an_undone_piece_of_work_uses_nothing(store: Store) -> None:
    def fail(transaction: Transaction) -> None:
        quotas.note_used(transaction, answers=2)
        raise UserError("no")

    with store.transaction() as transaction:
        assert isinstance(transaction.attempt(fail)[1], UserError)
    assert quotas.usage(store).used["answers"] == 0


def test_each_project_has_its_own_quota_and_its_own_tokens(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with Store.open(in_project(url, "team-a")) as first, Store.open(in_project(url, "team-b")) as second:
        secrets = {"a": token(first, "admin", "a"), "b": token(second, "admin", "b")}
        quotas.set_quota(first, {"answers": 1})
        for store, own, other in ((first, "a", "b"), (second, "b", "a")):
            served = service(store, open_access=False)
            with_chat(served)
            with client(served) as here:
                for path in ("/v1/models", "/metrics", "/", "/annotate", "/openapi.json"):
                    assert here.get(path, headers=bearer(secrets[own])).status_code == 200, path
                    assert here.get(path, headers=bearer(secrets[other])).status_code == 401, path
                post = {"json": HELLO, "headers": bearer(secrets[own])}
                said = [here.post("/v1/chat/completions", **post).status_code for _ in range(2)]
                assert said == [200, 429 if own == "a" else 200]
                answer = here.post("/login", data={"token": secrets[other]}, headers=PAGE, follow_redirects=False)
                assert answer.headers["location"] == "/login?failed=1"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_session_of_one_project_opens_nothing_of_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with Store.open(in_project(url, "team-a")) as first, Store.open(in_project(url, "team-b")) as second:
        secret, _ = token(first, "admin"), token(second, "admin")
        with client(service(first, open_access=False)) as here:
            here.post("/login", data={"token": secret}, headers=PAGE, follow_redirects=False)
            assert here.get("/").status_code == 200
            cookies = dict(here.cookies)
        assert cookies
        with client(service(second, open_access=False), cookies=cookies) as there:
            assert there.get("/", headers={"Accept": "application/json"}).status_code == 401


@pytest.mark.parametrize("changes", [{"answers": -1}, {"requests": 3}])
def test_what_is_no_quota_is_refused(store: Store, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="quota of"):
        quotas.set_quota(store, changes)
    assert quotas.usage(store).quota == {}


def test_a_command_sets_and_shows_the_quota(tmp_path: Path) -> None:
    url = f"{tmp_path / 'store.db'}?project=team-a"
    Store.open(url).close()
    said = rlhf_loop("project", "quota", url, "--answers", "1000", "--tokens", "50000").stdout
    assert "0 of 1,000 answers, 0 of 50,000 tokens" in said
    assert "today: 0 answers, 0 of 50,000 tokens" in rlhf_loop("project", "quota", url, "--answers", "none").stdout
    shown = json.loads(rlhf_loop("project", "quota", url, "--json").stdout)
    assert (shown["quota"], shown["used"]) == ({"tokens": 50000}, {"answers": 0, "tokens": 0})
    for amount in ("many", ""):  # an empty one, as of a variable that is not set, is no question
        assert "give a number" in rlhf_loop("project", "quota", url, "--tokens", amount, code=2).stderr
    assert "no project other" in rlhf_loop("project", "quota", f"{tmp_path / 'store.db'}?project=other", code=2).stderr
    assert rlhf_loop("project", "list", tmp_path / "store.db").stdout.split()[:2] == ["team-a", "0"]
