"""Feedback on answers: what becomes of it, retries, dry runs, several at once, whatever is sent."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples.server import client, service, token, with_chat

from rlhf_loop.errors import StoreUnavailable
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.answered_requests import forget_old_answers
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import write_json
from rlhf_loop.server.service import Service

HI = [{"role": "user", "content": "red green"}]


@pytest.fixture
def served(store: Store) -> Service:
    return service(store)


@pytest.fixture
def http(served: Service) -> Iterator[TestClient]:
    with_chat(served)
    with client(served) as opened:
        yield opened


def ask(http: TestClient, **values: Any) -> str:
    answer = http.post("/v1/chat/completions", json={"messages": HI, **values})
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def give(http: TestClient, response_id: str, code: int = 200, headers: Any = None, **values: Any) -> Any:
    answer = http.post("/v1/feedback", json={"response_id": response_id, **values}, headers=headers)
    assert answer.status_code == code, answer.text
    return answer.json()


def test_every_kind_of_feedback_becomes_its_record(http: TestClient, served: Service) -> None:
    id = ask(http, n=2, user="ann")
    give(http, id, thumb="up", comment="just what I needed")
    give(http, id, choice=1, rating={"score": 2, "scale": [0, 10]}, lead_time=3.5)
    give(http, id, comment="too short, say why", tags=["incomplete"])
    give(http, id, comment="and the sea?")
    give(http, id, edit="red and green")
    give(http, id, preference={"other_id": id, "other_choice": 1, "strength": 0.5})
    give(http, id, event="copy")
    thumb, rating, tagged, critique, edit, preference, copied = served.store.feedback()
    assert (thumb.label, thumb.comment, thumb.completion_id) == (True, "just what I needed", id)
    assert (rating.score, rating.scale, rating.completion_id, rating.lead_time) == (2, (0, 10), f"{id}-1", 3.5)
    assert (tagged.kind, tagged.comment) == ("critique", "too short, say why")
    assert [(s.label, s.start, s.end) for s in tagged.spans] == [("incomplete", 0, len("red green says base 0"))]
    assert (critique.kind, critique.comment) == ("critique", "and the sea?")
    assert edit.edited_completion == "red and green"
    assert (preference.a_id, preference.b_id, preference.winner, preference.strength) == (id, f"{id}-1", "a", 0.5)
    assert (copied.kind, copied.action) == ("implicit", "copy")
    assert {record.annotator.id for record in served.store.feedback()} == {thumb.annotator.id}
    assert "ann" not in thumb.annotator.id
    assert {record.source for record in served.store.feedback()} == {"app"}


def test_a_changed_mind_supersedes_and_none_takes_back(http: TestClient, served: Service) -> None:
    id = ask(http, user="ann")
    give(http, id, thumb="up")
    give(http, id, thumb="down", user="bob")
    give(http, id, thumb="down", user="ann")
    assert [(r.label) for r in served.store.feedback()] == [False, False]
    give(http, id, thumb="none", user="ann")
    assert len(served.store.feedback()) == 1
    assert give(http, id, thumb="none", user="ann")["records"] == []
    assert len(served.store.feedback(effective=False)) == 4


def test_who_asked_is_who_says_unless_told_otherwise(http: TestClient, served: Service) -> None:
    give(http, ask(http, user="ann"), thumb="up")
    give(http, ask(http, user="ann"), thumb="up", user="bob")
    give(http, ask(http), thumb="up")
    ann, bob, nobody = (record.annotator.id for record in served.store.feedback())
    assert len({ann, bob, nobody}) == 3
    assert nobody.startswith("anonymous-")


@pytest.mark.parametrize(
    ("values", "code", "field"),
    [
        ({"thumb": "sideways"}, 422, "thumb"),
        ({}, 422, None),
        ({"rating": {"score": 9}}, 422, "rating"),
        ({"rating": {"score": 1, "scale": [5, 1]}}, 422, "rating"),
        ({"thumb": "up", "choice": 3}, 404, "response_id"),
        ({"preference": {"other_id": "nowhere"}}, 404, "preference.other_id"),
        ({"comment": ""}, 422, "comment"),
        ({"tags": ["ok", ""]}, 422, "tags.1"),
        ({"thumb": "up", "mood": "fine"}, 422, "mood"),
        ({"thumb": "up", "lead_time": -1}, 422, "lead_time"),
        ({"event": "stare"}, 422, "event"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(
    http: TestClient, served: Service, values: dict, code: int, field: str | None
) -> None:
    error = give(http, ask(http), code=code, **values)["error"]
    assert error["param"] == field
    assert served.store.feedback() == []


@pytest.mark.parametrize(
    ("path", "headers", "field"),
    [("?dry_run=maybe", {}, "dry_run"), ("", {"Idempotency-Key": "a b"}, "idempotency-key")],
)
def test_what_is_wrong_beside_the_body_is_named_too(http: TestClient, path: str, headers: dict, field: str) -> None:
    answer = http.post(f"/v1/feedback{path}", json={"response_id": "x", "thumb": "up"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


def test_a_body_that_is_no_json_says_where(http: TestClient) -> None:
    answer = http.post("/v1/feedback", content='{"a', headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] is None
    assert "not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_an_item_of_whatever_depth_is_refused(http: TestClient, served: Service, depth: int) -> None:
    id = ask(http)
    deep = '{"response_id": "x", "mood": ' + "[" * depth + "]" * depth + "}"
    body = f'{{"items": [{deep}, {{"response_id": "{id}", "thumb": "up"}}]}}'
    answer = http.post("/v1/feedback/bulk", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422)
    if answer.status_code == 200:
        assert [result["status"] for result in answer.json()["results"]] == [422, 200]
    assert len(served.store.feedback()) == (answer.status_code == 200)


def test_feedback_that_was_not_stored_is_not_counted(http: TestClient, served: Service) -> None:
    id = ask(http)
    with served.store.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE answered_requests RENAME TO away")
    with pytest.raises(sa.exc.DBAPIError, match="answered_requests"):  # a 500 of the service, with a traceback
        give(http, id, headers={"Idempotency-Key": "k"}, thumb="up")
    assert served.store.feedback() == []
    assert "rlhf_loop_feedback_total{" not in http.get("/metrics").text
    give(http, id, thumb="up")
    assert 'rlhf_loop_feedback_total{kind="thumb"} 1.0' in http.get("/metrics").text


def test_answers_to_different_conversations_cannot_be_compared(http: TestClient, served: Service) -> None:
    id = ask(http)
    other = ask(http, messages=[{"role": "user", "content": "blue"}])
    said = give(http, id, code=422, thumb="up", preference={"other_id": other})
    assert said["error"]["param"] == "preference.other_id"
    give(http, id, code=422, preference={"other_id": id})
    assert served.store.feedback() == []  # not the thumb either


def test_regenerated_answers_can_be_compared(http: TestClient, served: Service) -> None:
    first, again = ask(http, user="ann"), ask(http, user="ann")
    give(http, again, preference={"other_id": first}, event="regenerate")
    assert [record.kind for record in served.store.feedback()] == ["preference", "implicit"]


def test_a_retry_gets_the_first_answer_and_stores_nothing_twice(http: TestClient, served: Service) -> None:
    id, key = ask(http), {"Idempotency-Key": "k1"}
    first = http.post("/v1/feedback", json={"response_id": id, "thumb": "up"}, headers=key)
    again = http.post("/v1/feedback", json={"thumb": "up", "response_id": id}, headers=key)
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(served.store.feedback(effective=False)) == 1
    assert give(http, id, code=409, headers=key, thumb="down")["error"]["param"] == "Idempotency-Key"


def test_keys_are_forgotten_after_a_week(http: TestClient, served: Service) -> None:
    id, key = ask(http), {"Idempotency-Key": "k1"}
    give(http, id, headers=key, thumb="up")
    assert forget_old_answers(served.store, time.time() + 6 * 86400) == 0
    assert forget_old_answers(served.store, time.time() + 8 * 86400) == 1
    give(http, id, headers=key, thumb="down")  # the key is a new one


def test_a_refused_request_does_not_use_its_key_up(http: TestClient) -> None:
    id, key = ask(http), {"Idempotency-Key": "k1"}
    give(http, id, code=404, headers=key, choice=5, thumb="up")
    give(http, id, headers=key, thumb="up")


def test_keys_of_two_applications_do_not_meet(served: Service) -> None:
    with_chat(served)
    with client(served) as http:
        id = ask(http)
    secrets = [token(served.store, "app", name) for name in ("one", "two")]
    for secret in secrets:
        with client(served, secret) as http:
            give(http, id, headers={"Idempotency-Key": "same"}, thumb="up", user=secret[:9])
    assert len(served.store.feedback()) == 2


def test_a_dry_run_says_what_would_be_stored(http: TestClient, served: Service) -> None:
    id = ask(http)
    key = {"Idempotency-Key": "k"}
    answer = http.post("/v1/feedback?dry_run=true", json={"response_id": id, "thumb": "up"}, headers=key)
    assert answer.json() == {"response_id": id, "records": [{"id": None, "kind": "thumb"}], "dry_run": True}
    assert http.post("/v1/feedback?dry_run=true", json={"response_id": "no", "thumb": "up"}).status_code == 404
    bulk = http.post("/v1/feedback/bulk?dry_run=true", json={"items": [{"response_id": id, "thumb": "up"}]})
    assert bulk.json()["accepted"] == 1
    assert served.store.feedback() == []


def test_bulk_says_of_each_item_what_became_of_it(http: TestClient, served: Service) -> None:
    id = ask(http, user="ann")
    items = [
        {"response_id": id, "thumb": "up"},
        {"response_id": "gone", "thumb": "up"},
        {"response_id": id, "thumb": "sideways"},
        {"response_id": id, "thumb": "down"},
    ]
    answer = http.post("/v1/feedback/bulk", json={"items": items}).json()
    assert (answer["accepted"], answer["refused"]) == (2, 2)
    assert [result["status"] for result in answer["results"]] == [200, 404, 422, 200]
    assert answer["results"][1]["error"]["param"] == "response_id"
    assert [record.label for record in served.store.feedback()] == [False]  # the second thumb takes the first's place
    assert http.post("/v1/feedback/bulk", json={"items": []}).status_code == 422


def test_what_people_write_is_redacted_and_otherwise_kept_letter_by_letter(http: TestClient, served: Service) -> None:
    id = ask(http)
    hostile = "<script>alert('x')</script> {{7*7}} '; drop table feedback; -- \u202e 🙂 ../../etc/passwd"
    give(http, id, comment=hostile, edit=f"{hostile} ann@example.org")
    (edit,) = served.store.feedback(kinds=["edit"])
    assert edit.comment == hostile
    assert edit.edited_completion == f"{hostile} [EMAIL]"


@pytest.mark.parametrize("id", ["../../etc/passwd", "%2e%2e", "a\x00b", "' or 1=1 --", "x" * 200, "\u202e", "🙂"])
def test_ids_lead_nowhere_but_into_the_store(http: TestClient, id: str) -> None:
    give(http, id, code=404, thumb="up")


def test_text_that_is_no_utf8_is_refused(http: TestClient, served: Service) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (
        b'{"response_id": "\xff\xfe"}',
        b"\x00\x01",
        b'{"response_id": "a", "comment": "\\ud800"}',
        b"[" * 9999,
    ):
        assert http.post("/v1/feedback", content=body, headers=headers).status_code in (400, 422)
    assert served.store.feedback() == []


RATINGS = st.fixed_dictionaries({"score": st.floats() | st.integers()}, optional={"scale": st.lists(st.floats())})
PREFERENCES = st.fixed_dictionaries({"other_id": st.just("THERE")}, optional={"other_choice": st.integers(0, 2)})
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "response_id": st.one_of(st.just("THERE"), st.text(max_size=20)),
        "choice": st.integers(-1, 3),
        "thumb": st.one_of(st.sampled_from(["up", "down", "none"]), st.text(max_size=3), st.booleans()),
        "rating": st.fixed_dictionaries(
            {"score": st.floats() | st.integers()}, optional={"scale": st.lists(st.floats())}
        ),
        "preference": st.fixed_dictionaries(
            {"other_id": st.just("THERE")}, optional={"other_choice": st.integers(0, 2)}
        ),
        "comment": st.text(max_size=50),
        "edit": st.text(max_size=50),
        "tags": st.lists(st.text(max_size=5), max_size=3),
        "event": st.sampled_from(["copy", "regenerate", "edit", "leave"]),
        "user": st.text(max_size=10),
    },
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=ITEMS)
def test_any_body_is_stored_whole_or_refused_with_nothing_stored(http: TestClient, served: Service, item: dict) -> None:
    if not hasattr(served, "an_answer"):
        served.an_answer = ask(http, n=2)  # type: ignore[attr-defined]
    text = json.dumps(item).replace("THERE", served.an_answer)  # type: ignore[attr-defined]
    before = len(served.store.feedback(effective=False))
    answer = http.post("/v1/feedback", content=text, headers={"Content-Type": "application/json"})
    after = len(served.store.feedback(effective=False))
    if answer.is_success:
        assert after - before == len(answer.json()["records"])
    else:
        assert answer.status_code in (400, 404, 422), answer.text
        assert answer.json()["error"]["message"]
        assert after == before


def test_a_user_is_deleted_with_what_they_asked_and_said(http: TestClient, served: Service) -> None:
    give(http, ask(http, user="ann"), thumb="up", comment="mine")
    kept = ask(http, user="bob")
    report = http.delete("/v1/users/ann")
    assert report.status_code == 200, report.text
    assert [completion.id for completion in served.store.completions()] == [kept]
    assert served.store.feedback() == []
    again = ask(http, user="ann")  # what is asked again is new, and stored
    assert {completion.id for completion in served.store.completions()} == {kept, again}


def test_a_user_whose_name_holds_a_slash_is_deleted_too(http: TestClient, served: Service) -> None:
    ask(http, user="idp/17")
    assert http.delete("/v1/users/idp%2F17").json()["deleted"]["completion"] == 1
    ask(http, user="idp/17")
    assert http.delete("/v1/users/idp/17").json()["deleted"]["completion"] == 1
    assert served.store.completions() == []


def test_a_user_is_not_deleted_while_the_run_is_in_use(http: TestClient, served: Service, tmp_path: Path) -> None:
    served.run_dir = tmp_path
    write_json(tmp_path / "lock", {"pid": 1, "host": socket.gethostname(), "since": 0})
    refused = http.delete("/v1/users/ann")
    assert refused.status_code == 409
    assert "in use by process 1" in refused.json()["error"]["message"]


def test_work_that_fails_is_undone_alone_and_the_rest_is_written(served: Service) -> None:
    def write(name: str, fail: bool = False) -> Any:
        def work(transaction: Transaction) -> str:
            transaction.connection.execute(tables.settings.insert().values(name=name, value="x"))
            if fail:
                raise ValueError(name)
            return name

        return served.writer.submit(work)

    with served.store.database.write():  # so that all of them wait
        futures = [write("a"), write("b", fail=True), write("c")]
    assert (futures[0].result(10), futures[2].result(10)) == ("a", "c")
    with pytest.raises(ValueError, match="b"):
        futures[1].result(10)
    with pytest.raises(sa.exc.IntegrityError):
        write("a").result(10)  # the name is taken
    served.writer.close()
    assert write("d").result(10) == "d"
    with served.store.database.read() as connection:
        assert {"a", "c", "d"} <= set(connection.scalars(sa.select(tables.settings.c.name)))


def test_posts_at_the_same_time_under_one_key_are_stored_once(http: TestClient, served: Service) -> None:
    id, answers = ask(http), []

    def post() -> None:
        answers.append(give(http, id, headers={"Idempotency-Key": "k"}, thumb="up"))

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers)
    assert len(served.store.feedback(effective=False)) == 1


def test_a_store_that_cannot_be_used_is_not_the_callers_mistake(
    http: TestClient, served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = ask(http)

    def locked(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("/secret/place/feedback.db is locked by another process")

    monkeypatch.setattr(served.store.database, "write", locked)
    answer = http.post("/v1/feedback", json={"response_id": id, "thumb": "up"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "/secret/place" not in answer.text
    monkeypatch.undo()
    give(http, id, thumb="up")
    assert [record.kind for record in served.store.feedback()] == ["thumb"]
