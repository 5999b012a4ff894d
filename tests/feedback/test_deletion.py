"""A user's texts leave the store, and do not come back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from samples.annotation import held
from samples.deletion import SECRET, TEXTS, delete_user, everything, talk
from samples.feedback import prompt
from typer.testing import CliRunner

from rlhf_loop.cli import app
from rlhf_loop.feedback.privacy.deletion import remember, user_key
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import (
    Artifact,
    Question,
)


def test_a_pseudonym_is_the_stores_own_and_stays(store: Store) -> None:
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(user_key(store, "ann"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert user_key(store, "bob") != keys[0]
    with Store.open(":memory:") as other:
        assert user_key(other, "ann") != keys[0]


def test_all_texts_of_a_user_leave_the_store(store: Store) -> None:
    key = talk(store)
    report = delete_user(store, "ann@example.org", [])
    assert not [text for text in TEXTS if text in everything(store)]
    assert {f.id for f in store.feedback()} == {"feedback-others"}
    assert {p.id for p in store.prompts()} == {"other-prompt"}
    assert {c.id for c in store.completions()} == {"other-answer-1", "other-answer-2", "revision-1"}
    assert store.completions(ids=["revision-1"])[0].critique is None
    assert store.questions() == []
    assert report.user == key
    assert report.deleted == {
        "prompt": 1, "completion": 2, "feedback": 4, "score": 1, "question": 1, "quarantine": 2,
    }  # fmt: skip
    with store.database.read() as connection:
        stones = connection.execute(sa.select(tables.tombstones.c.kind, tables.tombstones.c.record_id)).all()
        assert connection.scalar(sa.select(tables.answered_requests.c.body)) == "{}"
    assert sorted(map(tuple, stones)) == [
        ("completion", "private-answer-1"),
        ("completion", "private-answer-2"),
        ("feedback", "feedback-about"),
        ("feedback", "feedback-edit"),
        ("feedback", "feedback-elsewhere"),
        ("feedback", "feedback-thumb"),
        ("prompt", "private-prompt"),
    ]


def test_deleted_texts_do_not_linger_in_the_pages_of_the_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        talk(store)
        delete_user(store, "ann@example.org", [])
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert not [text for text in TEXTS if text.encode() in content], path


def standing(folder: Path, texts: Iterable[str]) -> list[str]:
    """Which of the texts stand in any file of the folder."""
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    return [text for text in texts if text.encode() in content]


def test_copies_that_moving_rows_about_left_in_pages_are_overwritten_too(tmp_path: Path) -> None:
    """SQLite moves rows when others are deleted, and leaves the old bytes where they were."""
    letters = random.Random(0)
    texts = {
        n: f"private text {n} " + "".join(letters.choices("abcdefghij", k=300 + 2000 * (n % 5))) for n in range(400)
    }
    with Store.open(tmp_path / "feedback.db") as store:
        users = {n: user_key(store, str(n)) for n in range(0, 400, 8)}
        for start in range(8):  # one after another, so that each page holds many people's
            store.add_prompts([prompt(f"p{n}", texts[n]) for n in range(start, 400, 8)])
        with store.transaction() as transaction:
            for n, key in users.items():
                remember(transaction, key, "prompt", [f"p{m}" for m in range(n, n + 8)])
        for n in list(users)[::2]:
            delete_user(store, str(n), [])
            gone = [texts[m][:30] for m in range(n, n + 8)]
            assert not standing(tmp_path, gone)
        assert len(store.prompts()) == 200


def test_what_a_reader_keeps_in_the_log_is_said_and_goes_when_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "feedback.db"
    with Store.open(file) as store:
        talk(store)
    code = (
        f"import sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('BEGIN'); "
        "c.execute('SELECT count(*) FROM prompts').fetchone(); print('reads', flush=True); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as reader, Store.open(file) as store:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reads\n"
        overwrite = store.database.overwrite_deleted
        store.database.overwrite_deleted = lambda: overwrite(0.3)  # type: ignore[method-assign]
        report = delete_user(store, "ann@example.org", [])
        assert report.left is not None
        assert f"process {reader.pid}" in report.left
        assert "type the same command again" in report.lines()[-1]
        assert SECRET not in everything(store)
        assert standing(tmp_path, [SECRET])  # it is true
        reader.communicate("done\n")
        again = delete_user(store, "ann@example.org", [])
        assert again.left is None
        assert not standing(tmp_path, TEXTS)


def test_the_command_fails_while_a_reader_keeps_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        talk(store)
    monkeypatch.setattr(Database, "overwrite_deleted", lambda self: "a reader is open")
    arguments = ["user", "delete", "ann@example.org", "--store", str(tmp_path / "feedback.db")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "not done yet: a reader is open" in result.output


def test_models_that_learned_from_it_are_listed(store: Store) -> None:
    talk(store)
    report = delete_user(store, "ann@example.org", [])
    assert [(m["id"], m["learned"], m["promoted"]) for m in report.models] == [
        ("rm", "directly", False),
        ("policy-1", "through rm", True),
    ]
    assert "reward_model rm of round 1 learned from it directly" in "\n".join(report.lines())
    assert lineage(store, "rm")["made_by"]["feedback"] == ["feedback-elsewhere"]  # the id stays, the text is gone


def test_what_was_deleted_is_not_taken_again(store: Store) -> None:
    talk(store)
    records = store.prompts(), store.completions(), store.feedback(), store.scores(), store.questions()
    delete_user(store, "ann@example.org", [])
    before = everything(store)
    with pytest.warns(UserWarning, match="deleted on request"):
        assert store.add_prompts(records[0]) == 0
    with pytest.warns(UserWarning, match="2 of 5 records are not taken"):
        store.add_completions([c for c in records[1] if c.id != "revision-1"] + store.completions(ids=["revision-1"]))
    with pytest.warns(UserWarning, match="4 of 5 records are not taken"):
        assert store.add_feedback(records[2]) == 0
    with pytest.warns(UserWarning, match="deleted on request"):
        assert store.add_scores(records[3]) == 0
    with pytest.warns(UserWarning, match="deleted on request"):
        assert store.add_questions(records[4]) == 0
    assert everything(store) == before
    rm = Artifact(id="rm", kind="reward_model", trained_on=(), round=1, path="x")
    assert store.add_artifact(rm) == 0  # as a round that goes on finds it in its redacted files


def test_an_import_of_what_was_deleted_keeps_nothing_of_it(store: Store, tmp_path: Path) -> None:
    from rlhf_loop.feedback.exporters.export import export
    from rlhf_loop.feedback.intake.import_file import import_file

    talk(store)
    export(store, tmp_path / "before.jsonl", "native")
    assert SECRET in (tmp_path / "before.jsonl").read_text()
    delete_user(store, "ann@example.org", [])
    counts = store.counts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = import_file(store, tmp_path / "before.jsonl")
    assert summary.rejected >= 7
    assert any("deleted at a person's wish" in reason for reason in summary.reasons)
    now = store.counts()
    assert {name: now[name] for name in now if name != "quarantine"} == {
        name: counts[name] for name in counts if name != "quarantine"
    }
    assert not [text for text in TEXTS[:4] if text in everything(store)]


def test_a_prompt_that_another_user_shares_stays(store: Store) -> None:
    talk(store)
    other = user_key(store, "bob")
    with store.transaction() as transaction:
        remember(transaction, other, "prompt", ["private-prompt"])
    delete_user(store, "ann@example.org", [])
    assert [p.id for p in store.prompts()] == ["other-prompt", "private-prompt"]
    delete_user(store, "bob", [])
    assert [p.id for p in store.prompts()] == ["other-prompt"]


def test_an_unknown_user_and_a_second_time_change_nothing(store: Store) -> None:
    talk(store)
    before = everything(store)
    assert sum(delete_user(store, "nobody", []).deleted.values()) == 0
    assert everything(store) == before
    delete_user(store, "ann@example.org", [])
    after = everything(store)
    again = delete_user(store, "ann@example.org", [])
    assert sum(again.deleted.values()) == 0
    assert [m["id"] for m in again.models] == ["rm", "policy-1"]
    assert everything(store) == after


def test_what_only_they_had_judged_is_open_again(store: Store) -> None:
    talk(store)
    delete_user(store, "bob", [])
    store.add_questions(
        [Question(id="question-2", prompt_id="other-prompt", a_id="other-answer-1", b_id="other-answer-2", round=0)]
    )
    assert store.questions(status="open") == held(store, "nobody") + store.questions(status="open")
    assert "question-2" not in {q.id for q in store.questions(status="open")}
    delete_user(store, "ann@example.org", [])
    assert "question-2" in {q.id for q in store.questions(status="open")}


def test_the_command_deletes_and_says_what_it_did(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        talk(store)
    arguments = ["user", "delete", "ann@example.org", "--store", str(tmp_path / "feedback.db")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["deleted"]["feedback"] == 4
    again = CliRunner().invoke(app, arguments)
    assert "nothing was there" in again.output
    assert "through rm" in again.output
