from __future__ import annotations

import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from samples.annotation import claim, held, release
from samples.feedback import (
    at_revision,
    completion,
    contents,
    every_kind_of_feedback,
    fill,
    needs_postgres,
    postgres_schema,
    preference,
    prompt,
)

from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.store import database, tables
from rlhf_loop.feedback.store.location import parse_url
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import as_columns, prompt_row
from rlhf_loop.feedback.store.tables import SCHEMA, VERSION_TABLE, metadata
from rlhf_loop.machine import network_file_system
from rlhf_loop.records import Annotator, Artifact, Critique, Edit, Implicit, Question, Score, Skip, Span

KINDS = ["memory", "sqlite", pytest.param("postgres", marks=needs_postgres)]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        yield from postgres_schema()
    else:
        yield ":memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'feedback.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def questions(n: int) -> list[Question]:
    return [Question(id=f"q{i}", prompt_id="p", a_id="a", b_id=f"b{i}", round=0, priority=float(i)) for i in range(n)]


def with_questions(store: Store, n: int) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), *(completion(f"b{i}") for i in range(n))])
    store.add_questions(questions(n))


def test_records_come_back_as_they_were_added(store: Store) -> None:
    fill(store)
    assert store.feedback(effective=False) == every_kind_of_feedback()
    assert [p.id for p in store.prompts()] == ["p", "q"]
    assert store.prompts(split="test")[0].tags == ("nature",)
    assert store.completions(ids=["c"])[0].sampling == {"top_p": 0.9}
    assert store.completions(ids=["d"])[0].text == ""
    assert store.scores(reward_model="rm")[0].breakdown == {"x": 1.0}
    assert store.artifacts(kind="reward_model")[0].trained_on == ("f9", "f2")


def test_text_that_databases_dislike_is_kept(store: Store) -> None:
    odd = ["nul \0 inside", "half a pair \ud83d", "quotes ' \" `; --", "\u2028 and \x1b"]
    store.add_prompts([prompt(text="\0 asks", reference="\ud83d")])
    store.add_completions([completion(f"c{i}", text) for i, text in enumerate(odd)])
    assert [c.text for c in store.completions()] == odd
    assert store.prompts()[0] == prompt(text="\0 asks", reference="\ud83d")


@pytest.mark.parametrize("odd", ["nul \0 inside", "half a pair \ud83d", "\u2028 and \x1b"])
def test_what_is_said_in_text_that_databases_dislike_is_kept(store: Store, odd: str) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("c")])
    about: dict[str, Any] = {"prompt_id": "p", "completion_id": "c", "annotator": Annotator(id=odd), "source": odd}
    said = [
        Critique(id="1", comment=odd, spans=(Span(start=0, end=1, label=odd, comment=odd),), **about),
        Edit(id="2", edited_completion=odd, comment=odd, external_id=odd, **about),
        Implicit(id="3", action=odd, **about),
    ]
    assert store.add_feedback(said) == 3
    assert store.feedback() == said


def test_adding_again_changes_nothing(store: Store) -> None:
    fill(store)
    before, counts = contents(store), store.counts()
    assert store.add_prompts(before["prompts"]) == 0
    assert store.add_completions(before["completions"]) == 0
    assert store.add_feedback(before["feedback"]) == 0
    assert store.add_scores(before["scores"]) == 0
    assert store.add_questions(before["questions"]) == 0
    assert [store.add_artifact(a) for a in before["artifacts"]] == [0, 0, 0]
    assert store.promote("policy-1") is False
    assert contents(store) == before
    assert store.counts() == counts


def test_adding_counts_what_is_new(store: Store) -> None:
    assert store.add_prompts([prompt(), prompt("q"), prompt()]) == 2
    assert store.add_completions([completion("a")]) == 1
    assert store.add_completions([completion("a"), completion("b"), completion("b")]) == 1


def test_another_record_under_the_same_id_is_refused_and_nothing_of_the_batch_is_added(store: Store) -> None:
    fill(store)
    with pytest.raises(UserError, match=r"feedback: the id f1 .*winner.*supersedes"):
        store.add_feedback([preference("new"), replace(every_kind_of_feedback()[0], winner="b")])
    assert store.feedback(ids=["new"]) == []
    with pytest.raises(UserError, match="the id a is already taken by a record whose text"):
        store.add_completions([completion("a", "something else")])
    with pytest.raises(UserError, match="in the split train and would also be in test"):
        store.add_prompts([prompt(split="test")])
    with pytest.raises(UserError, match="round"):
        store.add_artifact(Artifact(id="rm", kind="reward_model", path="x", round=2))
    with pytest.raises(UserError, match="the id twice"):
        store.add_completions([completion("twice", "one"), completion("twice", "two")])


def test_feedback_from_a_renamed_file_is_the_same_feedback(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), completion("b")])
    first = preference("f", who="import:old", source="old.jsonl:3")
    assert store.add_feedback([first]) == 1
    assert store.add_feedback([replace(first, annotator=Annotator(id="import:new"), source="new.jsonl:9")]) == 0
    assert store.feedback() == [first]
    with pytest.raises(UserError, match="annotator"):
        store.add_feedback([replace(first, annotator=Annotator(id="bob"))])


def test_what_refers_to_unknown_records_is_refused_naming_them(store: Store) -> None:
    store.add_prompts([prompt()])
    with pytest.raises(UserError, match=r"1 prompts .* such as nowhere"):
        store.add_completions([completion("a", prompt_id="nowhere")])
    store.add_completions([completion("a")])
    with pytest.raises(UserError, match=r"1 completions .* such as b"):
        store.add_feedback([preference("f")])
    with pytest.raises(UserError, match="such as b"):
        store.add_scores([Score(completion_id="b", reward_model="rm", value=0.0)])
    with pytest.raises(UserError, match="such as b"):
        store.add_questions([Question(id="q", prompt_id="p", a_id="a", b_id="b", round=0)])


def test_corrections_supersede_and_the_history_stays(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), completion("b")])
    history = [preference("f1"), preference("f2", supersedes="f1"), preference("f3", winner="b", supersedes="f2")]
    store.add_feedback(history)
    assert store.feedback() == [history[2]]
    assert store.feedback(effective=False) == history


def test_feedback_is_filtered_by_kind_and_prompt(store: Store) -> None:
    fill(store)
    ids = [f.id for f in store.feedback(kinds=["thumb", "rating"])]
    assert ids == ["f3", "f4"]
    assert store.feedback(prompt_id="q") == []


def test_completions_are_filtered(store: Store) -> None:
    fill(store)
    store.add_completions([completion("e", policy="policy-1", round=1)])
    assert [c.id for c in store.completions(prompt_id="q")] == ["d"]
    assert [c.id for c in store.completions(round=1)] == ["e"]
    assert [c.id for c in store.completions(policy="policy-1")] == ["e"]
    assert [c.id for c in store.completions(ids=["e", "a", "nowhere"])] == ["a", "e"]
    assert store.completions(ids=[]) == []
    of_both = store.completions(prompt_ids=["q", "p", "q", "nowhere"])
    assert of_both == store.completions()
    assert [c.id for c in store.completions(prompt_ids=["q"])] == ["d"]
    assert [c.id for c in store.completions(prompt_ids=["p"], round=1)] == ["e"]
    assert store.completions(prompt_ids=[]) == []


def test_scores_may_differ_by_rounding_only(store: Store) -> None:
    fill(store)
    assert store.add_scores([Score(completion_id="b", reward_model="rm", value=-2.001, round=3)]) == 0
    assert store.scores(completion_ids=["b"])[0].value == -2.0
    with pytest.raises(UserError, match="rm gave completion b the score -2 before and 2 now"):
        store.add_scores([Score(completion_id="b", reward_model="rm", value=2.0)])
    with pytest.raises(UserError, match="diverged"):
        store.add_scores([Score(completion_id="c", reward_model="rm", value=math.nan)])


def test_one_policy_is_promoted_at_a_time_and_the_history_is_kept(store: Store) -> None:
    assert store.promoted_id() is None
    fill(store)
    assert store.promoted_id() == "policy-1"
    assert [a.id for a in store.artifacts() if a.promoted] == ["policy-1"]
    assert store.promote("base") is True
    assert [id for id, _ in store.promotions()] == ["base", "policy-1", "base"]
    with pytest.raises(UserError, match="rm is a reward_model; policies that are: base, policy-1"):
        store.promote("rm")
    with pytest.raises(UserError, match="policy-9 is not in the store"):
        store.promote("policy-9")


def test_an_artifact_may_move_and_be_measured_again(store: Store) -> None:
    fill(store)
    rm = store.artifacts(kind="reward_model")[0]
    assert store.add_artifact(replace(rm, path="elsewhere", metrics={"accuracy": 0.8})) == 0
    moved = store.artifacts(ids=["rm"])[0]
    assert (moved.path, moved.metrics, moved.trained_on) == ("elsewhere", {"accuracy": 0.8}, ("f9", "f2"))


def test_a_claimed_question_is_not_given_again_until_its_lease_ends(store: Store) -> None:
    with_questions(store, 3)
    assert [q.id for q in claim(store, "ann", 2)] == ["q2", "q1"]
    assert [q.id for q in claim(store, "ann", 2)] == ["q0"]
    assert claim(store, "bob", 2) == []
    assert [q.id for q in held(store, "ann")] == ["q2", "q1", "q0"]
    assert release(store, "ann") == 3
    assert [q.id for q in claim(store, "bob", 1, seconds=0.0)] == ["q2"]
    time.sleep(0.01)
    assert [q.id for q in claim(store, "ann", 1)] == ["q2"]


def test_a_preference_answers_the_question_about_its_pair_however_it_was_shown(store: Store) -> None:
    with_questions(store, 2)
    store.add_feedback([preference("f", "b1", "a")])
    assert [q.id for q in store.questions(status="open")] == ["q0"]
    assert [q.id for q in store.questions(status="answered")] == ["q1"]
    assert store.counts()["open_questions"] == 1


def test_a_question_about_a_pair_that_is_judged_already_is_answered(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), completion("b0")])
    store.add_feedback([preference("f", "a", "b0")])
    store.add_questions(questions(1))
    assert store.questions(status="open") == []


def test_a_skipped_question_goes_to_somebody_else(store: Store) -> None:
    with_questions(store, 1)
    claim(store, "ann")
    store.add_feedback([Skip(id="s", prompt_id="p", a_id="a", b_id="b0", annotator=Annotator(id="ann"))])
    assert claim(store, "ann") == []
    assert [q.id for q in claim(store, "bob")] == ["q0"]


def test_refused_rows_are_kept_once(store: Store) -> None:
    rows = [Refused("f.jsonl", 3, "not valid JSON", "{\0"), Refused("f.jsonl", 9, "empty", "")]
    assert store.quarantine(rows) == 2
    assert store.quarantine(rows) == 0
    assert [(r.file, r.line, r.reason) for r in store.quarantined()] == [row[:3] for row in rows]


def test_feedback_that_failed_validation_is_noted_once_with_its_place(store: Store) -> None:
    record = preference("f", source="pairs.jsonl:12")
    assert store.quarantine_feedback([(record, "outvoted 2 to 1", 1)]) == 1
    assert store.quarantine_feedback([(record, "outvoted 2 to 1", 2)]) == 0
    noted = store.quarantined()[0]
    assert (noted.file, noted.line, noted.reason) == ("pairs.jsonl", 12, "validation before round 1: outvoted 2 to 1")
    assert '"winner": "a"' in noted.raw


def test_generations_can_be_searched_by_text_prompt_and_score(store: Store) -> None:
    fill(store)
    found = store.search_completions()
    assert [(c.id, score and score.value) for c, score in found] == [
        ("a", 1 / 3),
        ("b", -2.0),
        ("c", None),
        ("d", None),
    ]
    assert [c.id for c, _ in store.search_completions(text="BETTER")] == ["c"]
    assert [c.id for c, _ in store.search_completions(prompt="the sea")] == ["d"]
    assert [c.id for c, _ in store.search_completions(min_score=0.0)] == ["a"]
    assert [c.id for c, _ in store.search_completions(text="100%")] == []
    store.add_scores([Score(completion_id="b", reward_model="rm2", value=5.0)])
    assert store.search_completions(limit=1)[0][1] == Score(completion_id="b", reward_model="rm2", value=5.0)
    assert store.search_completions(reward_model="rm", limit=1)[0][0].id == "a"


def test_lineage_leads_from_a_completion_to_what_was_trained_on_it(store: Store) -> None:
    fill(store)
    store.add_completions([completion("e", policy="policy-1", round=1)])
    of_b = lineage(store, "b")
    assert of_b["went_into"]["artifacts"] == ["rm", "policy-1"]
    assert of_b["went_into"]["feedback"] == ["f1", "f2", "f4", "f5", "f7", "f9"]
    assert of_b["went_into"]["scores"] == [{"reward_model": "rm", "value": -2.0, "round": 1}]
    assert of_b["went_into"]["revisions"] == ["c"]
    assert lineage(store, "c")["made_by"]["revises"] == "b"
    of_e = lineage(store, "e")["made_by"]
    assert (of_e["policy"], of_e["parents"], of_e["prompt"]) == ("policy-1", ["base"], "p")


def test_lineage_leads_from_an_artifact_back_to_its_feedback(store: Store) -> None:
    fill(store)
    of_policy = lineage(store, "policy-1")
    assert of_policy["made_by"] == {"round": 1, "parents": ["base"], "feedback": ["f9", "f2"]}
    assert lineage(store, "base")["went_into"]["artifacts"] == ["policy-1"]
    of_feedback = lineage(store, "f9")
    assert of_feedback["made_by"]["corrects"] == "f1"
    assert of_feedback["went_into"]["artifacts"] == ["rm", "policy-1"]
    assert lineage(store, "f1")["went_into"] == {"corrected_by": ["f9"], "artifacts": []}
    of_score = lineage(store, "a:rm")
    assert of_score["made_by"]["reward_model_feedback"] == ["f9", "f2"]
    assert of_score["went_into"] == {"policies_of_its_round": ["policy-1"]}
    with pytest.raises(UserError, match="nothing-like-it is not the id"):
        lineage(store, "nothing-like-it")


def test_threads_share_a_store(store: Store) -> None:
    store.add_prompts([prompt()])
    errors = []

    def work(name: str) -> None:
        try:
            for i in range(10):
                store.add_completions([completion(f"{name}-{i}")])
                store.completions(prompt_id="p")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.counts()["completions"] == 40


def test_what_is_read_inside_a_read_is_of_the_same_state(store_url: str) -> None:
    with Store.open(store_url) as store, Store.open(store_url) as other:
        with store.database.read():
            assert store.counts()["prompts"] == 0
            other.add_prompts([prompt()])
            assert (store.counts()["prompts"], store.prompts()) == (0, [])
        assert store.counts()["prompts"] == 1


def test_two_processes_never_claim_the_same_question(store_url: str) -> None:
    with Store.open(store_url) as store:
        with_questions(store, 60)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        claimed = pool.map(_claim_all, [store_url, store_url], chunksize=1)
    ids = [id for ids in claimed for id in ids]
    assert len(ids) == len(set(ids)) == 60


def test_two_writing_processes_lose_nothing(store_url: str) -> None:
    """They also open the empty store at the same time, and add the same prompt."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        new = pool.starmap(_write_many, [(store_url, "x"), (store_url, "y")], chunksize=1)
    with Store.open(store_url) as store:
        assert store.counts()["completions"] == sum(new) == 100
        assert store.counts()["prompts"] == 1


def _claim_all(url: str) -> list[str]:
    with Store.open(url) as store:
        ids = []
        while questions := claim(store, "the same name", 3):
            ids += [question.id for question in questions]
        return ids


def _write_many(url: str, name: str) -> int:
    with Store.open(url) as store:
        store.add_prompts([prompt()])
        return sum(store.add_completions([completion(f"{name}{i}-{j}") for j in range(10)]) for i in range(5))


def test_the_migrations_make_the_tables_that_the_code_uses(store_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with Store.open(store_url) as store, store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


def test_a_store_that_kept_summaries_of_rounds_is_brought_up_to_date(store_url: str) -> None:
    with at_revision(store_url, "0005") as connection:
        connection.exec_driver_sql("INSERT INTO rounds (run, round, body) VALUES ('run', 1, '{}')")
        row = prompt_row(prompt())
        connection.execute(tables.prompts.insert(), [as_columns("prompts", row)])
    with Store.open(store_url) as store:
        with store.database.read() as connection:
            assert "rounds" not in sa.inspect(connection).get_table_names()
        assert store.prompts() == [prompt()]
        assert store.add_completions([completion("a")]) == 1


def test_a_store_from_the_future_is_refused_and_left_alone(store_url: str) -> None:
    with Store.open(store_url) as store, store.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(UserError, match=r"newer rlhf-loop .schema 9999; .* Upgrade"):
        Store.open(store_url)


def test_sqlite_uses_a_write_ahead_log_and_foreign_keys(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db") as store, store.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_network_file_systems_are_recognised() -> None:
    mounts = (
        "/dev/sda / ext4 rw 0 0\nserver:/home /mnt/my\\040home nfs4 rw 0 0\ntmpfs /mnt/my\\040home/local tmpfs rw 0 0\n"
    )
    assert network_file_system(Path("/mnt/my home/run/f.db"), mounts) == "nfs4"
    assert network_file_system(Path("/mnt/my home/local/f.db"), mounts) is None
    assert network_file_system(Path("/var/f.db"), mounts) is None


def test_on_a_network_file_system_the_rollback_journal_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "network_file_system", lambda path: "nfs4")
    with (
        pytest.warns(UserWarning, match="network file system .nfs4.*local disk, or use PostgreSQL"),
        Store.open(tmp_path / "f.db") as store,
        store.database.read() as connection,
    ):
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


def test_a_lock_that_stays_is_an_error_that_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    Store.open(path).close()
    hold = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1],isolation_level=None); c.execute('BEGIN IMMEDIATE');"
    hold += "print('held',flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with Store.open(path, busy_seconds=0.2) as store:
            with pytest.raises(UserError, match=r"locked by another process.*Wait") as error:
                store.add_prompts([prompt()])
            if Path("/proc").is_dir():
                assert f"process {holder.pid}" in str(error.value)
        assert holder.stdin
        holder.stdin.close()
    with Store.open(path) as store:
        assert store.add_prompts([prompt()]) == 1


def test_a_damaged_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match=r"f\.db is damaged or not a SQLite database.*restore"):
        Store.open(path)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (id)")
    with pytest.raises(UserError, match=r"customers.*is no rlhf-loop store; nothing was changed"):
        Store.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    Store.open(path).close()
    path.chmod(0o400)
    with Store.open(path) as store:
        assert store.counts()["prompts"] == 0
        with pytest.raises(UserError, match="can only be read by you"):
            store.add_prompts([prompt()])
    path.chmod(0)
    with pytest.raises(UserError, match="no permission"):
        Store.open(path)


def test_a_missing_store_is_an_error_when_it_must_be_there(tmp_path: Path) -> None:
    Store.open(tmp_path / "feedback.db").close()
    with pytest.raises(UserError, match=r"there is no store at .*feedbak\.db; in that folder there is feedback\.db"):
        Store.open(tmp_path / "feedbak.db", create=False)
    assert not (tmp_path / "feedbak.db").exists()
    with pytest.raises(UserError, match="is a folder"):
        Store.open(tmp_path)


def test_a_full_disk_is_an_error_that_says_what_is_safe(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db") as store:
        store.add_prompts([prompt()])
        with store.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 60")  # SQLite's own way to run out of room
        with pytest.raises(UserError, match=r"disk is full.*free some space"):
            store.add_completions([completion(str(i), "x" * 1000) for i in range(500)])
        assert store.counts()["completions"] == 0


def test_an_error_in_a_query_is_not_called_a_store_that_is_away(store: Store) -> None:
    with store.database.read() as connection, pytest.raises(sa.exc.DBAPIError, match="nowhere"):
        connection.execute(sa.text("SELECT nowhere FROM prompts"))
    with pytest.raises(sa.exc.DBAPIError) as error, store.database.read() as connection:
        connection.execute(sa.text("SELECT nowhere FROM prompts"))
    assert not isinstance(error.value, UserError)
    twice = [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]
    with pytest.raises(sa.exc.IntegrityError), store.database.write() as connection:
        connection.execute(metadata.tables["settings"].insert(), twice)
    assert store.counts()["settings"] == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/x", "a store cannot be kept in `mysql`; give sqlite:///FILE"),
        ("sqlite://folder/file.db", "takes three slashes"),
        ("postgresql://localhost:port/x", "cannot be read"),
    ],
)
def test_a_wrong_url_is_an_error_that_shows_right_ones(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store.open(url)


def test_a_server_that_cannot_be_reached_is_an_error_without_the_password() -> None:
    with pytest.raises(UserError, match=r"localhost:1/x cannot be reached.*Check") as error:
        Store.open("postgres://me:secret@localhost:1/x")
    assert "secret" not in str(error.value)


def test_paths_and_urls_name_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "some where" / "f.db"
    with Store.open(path) as store:
        store.add_prompts([prompt()])
    with Store.open(f"sqlite:///{path}") as store:
        assert store.counts()["prompts"] == 1
    assert parse_url("postgres://h/x").drivername == "postgresql+psycopg"


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_completions_are_quick(store_url: str, n: int) -> None:
    completions = [completion(f"c{i}", f"text {i} " * 5) for i in range(n)]
    with Store.open(store_url) as store:
        store.add_prompts([prompt()])
        started = time.process_time()
        assert store.add_completions(completions) == n
        assert store.add_completions(completions) == 0
        ids = [c.id for c in completions[::2]]
        store.add_scores([Score(completion_id=id, reward_model="rm", value=float(i)) for i, id in enumerate(ids)])
        assert len(store.completions(ids=ids)) == n // 2
        assert len(store.scores(completion_ids=ids[:100])) == 100
        assert store.search_completions(text=f"{n - 1} ")[0][0].id == f"c{n - 1}"
        assert time.process_time() - started < n / 1000  # a thousand a second: ten times slower than measured


def test_when_all_connections_are_in_use_the_store_is_unavailable(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "POOL_SECONDS", 0.2)
    with Store.open(store_url) as store, ExitStack() as held:
        for _ in range(15):
            held.enter_context(store.database.engine.connect())
        with pytest.raises(StoreUnavailable, match=r"all connections to .* are in use, and stayed so for 0\.2 seconds"):
            store.counts()
        held.close()
        assert store.counts()["prompts"] == 0
