"""In whatever field of a request somebody writes a mail address: it is not stored, and not logged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from samples.annotation import fill_queue
from samples.server import client, file_store, service, with_chat

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.server.logs import JsonLines

MAIL = "ann.private@example.org"
WRITTEN = [MAIL, "ann.private\\u0040example.org", MAIL.replace(".", "\u200b.").upper()]


def stored(store: Store) -> str:
    with store.database.read() as connection:
        rows = [tuple(row) for t in tables.metadata.sorted_tables for row in connection.execute(sa.select(t))]
    return repr(rows).lower().replace("\\u200b", "").replace("\u200b", "")


@pytest.mark.parametrize("mail", WRITTEN)
def test_no_field_of_an_application_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, mail: str) -> None:
    served = service(file_store(tmp_path), log_texts=True)
    with_chat(served)
    logging.getLogger("rlhf_loop.server").propagate = True
    said: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": f"you serve {mail}"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": f"mail {mail}"}]},
        ],
        "user": mail,
        "stop": [f"{mail} end"],
        "metadata": {"tags": f"of {mail}", "conversation_id": f"c {mail}", mail: mail},
    }
    with caplog.at_level(logging.INFO, "rlhf_loop.server"), client(served) as http:
        answer = http.post("/v1/chat/completions", json=said)
        assert answer.is_success, answer.text
        id = answer.json()["id"]
        words = {"comment": f"by {mail}", "edit": f"ask {mail}", "tags": [f"tag {mail}"], "user": mail}
        key = {"Idempotency-Key": mail if mail == MAIL else "k-1"}
        given = [http.post("/v1/feedback", json={"response_id": id, **words}, headers=key) for _ in range(2)]
        assert [answer.is_success for answer in given] == [True, True]
        assert given[1].headers["Idempotency-Replayed"] == "true"
        assert given[0].json() == given[1].json()
        items = [
            {"response_id": id, mail: 1},
            {"response_id": f"x {mail}", "thumb": "up"},
            {"response_id": id, **words},
        ]
        bulk = http.post("/v1/feedback/bulk", json={"items": items}, headers={"Idempotency-Key": "k-2"})
        assert [result["status"] for result in bulk.json()["results"]] == [422, 404, 200]
    lines = "".join(JsonLines().format(record) for record in caplog.records if record.name == "rlhf_loop.server")
    for kept in (stored(served.store), lines.lower()):
        assert "ann.private" not in kept
    assert json.dumps("[EMAIL]")[1:-1].lower() in stored(served.store)


@pytest.mark.parametrize("mail", WRITTEN)
def test_no_field_of_a_card_keeps_it(tmp_path: Path, mail: str) -> None:
    served = service(file_store(tmp_path))
    fill_queue(served.store)
    with client(served) as http:
        card = http.post("/annotate/api/next", json={}).json()["card"]
        about = {
            "comment": f"by {mail}",
            "tags": [f"tag {mail}", mail, f"{mail} "],
            "spans": [{"start": 0, "end": 1, "label": f"label {mail}", "comment": f"said {mail}"}],
            "edit": f"ask {mail}",
        }
        judged = {"question": card["question"], "verdict": "first", "submission": "0123456789", "answers": [about] * 2}
        answer = http.post("/annotate/api/submit", json=judged)
        assert answer.is_success, answer.text
        assert answer.json()["redacted"] == 14
    assert "ann.private" not in stored(served.store)
    labels = {span.label for record in served.store.feedback() for span in getattr(record, "spans", ())}
    assert labels >= {"label [EMAIL]", "tag [EMAIL]", "[EMAIL]"}
