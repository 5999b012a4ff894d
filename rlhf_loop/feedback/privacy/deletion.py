"""Users of applications: their pseudonyms, what is kept of them, and its deletion.

The name that an application has for its user is never stored, only a keyed hash of it. What a user said and was
answered is noted under that hash (`user_records`), so that all of it can go. A deletion leaves tombstones: ids and
when, no text. What has a tombstone is not taken again, wherever it comes from.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.borrowed import borrowed_in
from rlhf_loop.feedback.privacy.deletion_files import redact_run, trained_in
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.feedback.privacy.forgetting import as_borrowed
from rlhf_loop.feedback.store import question_queue, tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.artifacts import promoted_id
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.trained_on import models_of
from rlhf_loop.run_dir import RunDir

_one_at_a_time = threading.Lock()
"""Deletions of one process take turns; what a run's lock keeps out would be refused."""


def user_key(store: Store, user: str) -> str:
    """The pseudonym of an application's user: a keyed hash (HMAC-SHA256) of the application's name for them."""
    name = user.encode("utf-8", "replace")
    return "user-" + hmac.new(store.pseudonym_key, name, hashlib.sha256).hexdigest()[:24]


def remember(transaction: Transaction, user: str, kind: str, ids: Iterable[str]) -> None:
    """Notes that these records (`kind`: prompt, completion, feedback) are of the user with this pseudonym.

    In the transaction that adds them, so that no record is ever there without it.
    """
    column, connection = tables.user_records.c, transaction.connection
    wanted = list(dict.fromkeys(ids))
    mine = [column.user == user, column.kind == kind]
    known = {id for chunk in chunks(wanted) for id in _column(connection, column.record_id, chunk, *mine)}
    rows = [{"user": user, "kind": kind, "record_id": id} for id in wanted if id not in known]
    if rows:
        connection.execute(tables.user_records.insert(), rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletionReport:
    """What a deletion took out, and which models had learned from it."""

    user: str  # the pseudonym
    deleted: dict[str, int]  # rows of the store: prompt, completion, feedback, score, question, quarantine
    runs: dict[str, dict[str, int]]  # for each run: file -> rows taken out
    models: list[dict[str, Any]] = field(default_factory=list)
    """`{id, kind, round, path, promoted, learned}`; learned: `directly`, or `through ID` for what was made with or from
    a model that did. The models themselves stay: train new ones, or roll back, where they must go too."""
    left: str | None = None  # why copies of the texts still stand on disk, and what to do; None: they do not

    def lines(self) -> list[str]:
        """The report for people."""
        taken = ", ".join(f"{count} {name}" for name, count in self.deleted.items() if count)
        lines = [f"{self.user}: deleted from the store: {taken or 'nothing (nothing was there)'}"]
        for run, files in self.runs.items():
            lines.append(f"{run}: {sum(files.values())} rows in {len(files)} files")
        for model in self.models:
            promoted = " (promoted)" if model["promoted"] else ""
            lines.append(
                f"  {model['kind']} {model['id']} of round {model['round']}{promoted} learned from it "
                f"{model['learned']}"
            )
        if self.models:
            lines.append("these models stay as they are; rounds from now on learn without it")
        if self.left is not None:
            lines.append(f"not done yet: {self.left}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def delete_user(
    store: Store, user: str, run_dirs: Sequence[Path], *, rewrite_report: Callable[[RunDir], object]
) -> DeletionReport:
    """Deletes what a user of an application (or an annotator of this name) asked, was answered and said.

    Gone are the prompts, all answers to them, all feedback about either, and the user's own feedback on other things;
    from the store, its quarantine, and the files of the runs. A prompt that another user asked in the same words stays.
    Steps and rounds that are complete stay so: the manifest of a step whose files changed says `inputs redacted`.
    Doing it again, with the same runs or others, finishes what was interrupted, and lists the same models.
    `rewrite_report` (`rlhf_loop.report.write_report`) is called for each run that has a report, which shows texts.

    Raises `UserError` when one of the runs is in use: nothing was deleted then.
    """
    key = user_key(store, user)
    with ExitStack() as locks:
        locks.enter_context(_one_at_a_time)
        for folder in run_dirs:
            locks.enter_context(RunDir(folder).locked())
        with store.database.read() as connection:
            deletion = _collect(connection, key, user)
        # The files first: after an interruption the store still knows what is to go.
        runs = {str(folder): redact_run(run := RunDir(folder), as_borrowed(run, deletion), key) for folder in run_dirs}
        with store.database.write() as connection:
            deletion = _collect(connection, key, user)  # with what was said in the meantime
            promoted = {kept[-1][0] for folder in run_dirs if (kept := RunDir(folder).promotions())}
            models = _models(connection, deletion, trained_in(run_dirs, key), promoted)
            deleted = _delete(connection, deletion, key)
        left = store.database.overwrite_deleted()
        for folder in run_dirs:
            # The report shows answers; an interrupted deletion may have left it as it was.
            if (folder / "report.html").exists():
                rewrite_report(RunDir(folder))
    return DeletionReport(user=key, deleted=deleted, runs=runs, models=models, left=left)


def _collect(connection: sa.Connection, key: str, user: str) -> Deletion:
    """All ids that go, with those of earlier deletions of this user, and the texts of those that are still there."""
    column = tables.user_records.c
    other = tables.user_records.alias()
    shared = sa.exists().where(other.c.kind == column.kind, other.c.record_id == column.record_id, other.c.user != key)
    mine = connection.execute(sa.select(column.kind, column.record_id).where(column.user == key, sa.not_(shared)))
    buried = connection.execute(
        sa.select(tables.tombstones.c.kind, tables.tombstones.c.record_id).where(tables.tombstones.c.user == key)
    )
    ids: dict[str, set[str]] = {"prompt": set(), "completion": set(), "feedback": set()}
    for kind, id in [*mine, *buried]:
        ids[kind].add(id)
    prompts, completions, feedback = ids["prompt"], ids["completion"], ids["feedback"]
    answer, said = tables.completions.c, tables.feedback.c
    completions |= _ids_where(connection, answer.id, answer.prompt_id, prompts)
    fresh = completions
    while fresh := _ids_where(connection, answer.id, answer.parent, fresh) - completions:  # revisions repeat the text
        completions |= fresh
    feedback |= _ids_where(connection, said.id, said.annotator, {key, user})
    feedback |= _ids_where(connection, said.id, said.prompt_id, prompts)
    for place in (said.completion_id, said.a_id, said.b_id):
        feedback |= _ids_where(connection, said.id, place, completions)
    texts: set[str] = set()
    comments: set[str] = set()
    tags: set[str] = set()
    for body in _bodies(connection, tables.prompts, prompts):
        texts |= {message["content"] for message in body["messages"] if message["role"] != "system"}
    for body in _bodies(connection, tables.feedback, feedback):
        spans = [span["comment"] for span in body.get("spans") or []]
        tags |= {span["label"].strip() for span in body.get("spans") or []} - {""}
        given = [text for text in (body.get("comment"), body.get("edited_completion"), *spans) if text]
        comments |= {*given, *(text.strip() for text in given)} - {""}
    for chunk in chunks(completions):
        texts |= {text for text in _column(connection, answer.text, chunk, key=answer.id) if text}
    return Deletion(
        prompts=prompts,
        completions=completions,
        feedback=feedback,
        texts=texts | comments,
        comments=comments | tags,  # a tag is no quotation, for it may be everybody's word
        annotators={key, user},
    )


def _delete(connection: sa.Connection, deletion: Deletion, key: str) -> dict[str, int]:
    """Deletes the rows, those that point to others first, and leaves tombstones."""
    counts: Counter[str] = Counter(dict.fromkeys(("prompt", "completion", "feedback", "score", "question"), 0))
    asked, said = tables.questions.c, tables.feedback.c
    pairs = {pair for chunk in chunks(deletion.feedback) for pair in _column(connection, said.pair, chunk, key=said.id)}
    questions = set()
    for column, ids in (
        (asked.prompt_id, deletion.prompts),
        (asked.a_id, deletion.completions),
        (asked.b_id, deletion.completions),
    ):
        questions |= _ids_where(connection, asked.id, column, ids)
    _delete_where(connection, tables.leases.c.question_id, questions)
    counts["question"] = _delete_where(connection, asked.id, questions)
    counts["score"] = _delete_where(connection, tables.scores.c.completion_id, deletion.completions)
    counts["feedback"] = _delete_where(connection, said.id, deletion.feedback)
    counts["completion"] = _delete_where(connection, tables.completions.c.id, deletion.completions)
    counts["prompt"] = _delete_where(connection, tables.prompts.c.id, deletion.prompts)
    _forget_critiques(connection, deletion)
    counts["quarantine"] = _delete_quarantined(connection, deletion)
    _blank_answers(connection, deletion)
    connection.execute(tables.user_records.delete().where(tables.user_records.c.user == key))
    now, stone = time.time(), tables.tombstones.c
    for kind, ids in (
        ("prompt", deletion.prompts),
        ("completion", deletion.completions),
        ("feedback", deletion.feedback),
    ):
        for chunk in chunks(ids):
            owned = tables.user_records.c
            connection.execute(tables.user_records.delete().where(owned.kind == kind, owned.record_id.in_(chunk)))
            known = set(_column(connection, stone.record_id, chunk, stone.kind == kind))
            rows = [{"kind": kind, "record_id": id, "user": key, "deleted_at": now} for id in chunk if id not in known]
            if rows:
                connection.execute(tables.tombstones.insert(), rows)
    question_queue.settle(connection, sorted(pair for pair in pairs if pair))  # what only they had judged is open again
    return dict(counts)


def _forget_critiques(connection: sa.Connection, deletion: Deletion) -> None:
    """A revision that stays carries the critique it answers to: not when that critique goes."""
    answer = tables.completions.c
    for id, body in connection.execute(sa.select(answer.id, answer.body).where(answer.parent.is_not(None))).all():
        values = json.loads(body)
        if deletion.is_critique(values.get("critique")):
            emptied = json.dumps({**values, "critique": None}, ensure_ascii=False)
            connection.execute(tables.completions.update().where(answer.id == id).values(body=emptied))


def _delete_quarantined(connection: sa.Connection, deletion: Deletion) -> int:
    """Refused rows that name what goes, or repeat its text."""
    column = tables.quarantine.c
    rows = connection.execute(sa.select(column.number, column.raw, column.reason)).all()
    hold = [row.number for row in rows if deletion.named_in(row.raw) or deletion.repeated_in(f"{row.raw} {row.reason}")]
    return _delete_where(connection, column.number, hold)


def _blank_answers(connection: sa.Connection, deletion: Deletion) -> None:
    """Answers kept for repeated requests stay, so that a repetition stores nothing, but without the texts."""
    column = tables.answered_requests.c
    for row in connection.execute(sa.select(column.token_id, column.key, column.body)).all():
        if deletion.repeated_in(row.body):
            this = sa.and_(column.token_id == row.token_id, column.key == row.key)
            connection.execute(tables.answered_requests.update().where(this).values(body="{}"))


def _models(
    connection: sa.Connection, deletion: Deletion, trained: Sequence[tuple[int, Path]], promoted: set[str]
) -> list[dict[str, Any]]:
    """Every artifact that learned from what goes: by its feedback, its training rows, its reward model, its parent.

    `trained`: the rounds whose training rows held it. `promoted`: the policies that are promoted in the runs.
    """
    stored = tables.artifacts
    learned = {id: "directly" for chunk in chunks(deletion.feedback) for id in models_of(connection, chunk)}
    rows = connection.execute(sa.select(stored).order_by(stored.c.number)).all()
    in_force = {*promoted, promoted_id(connection)}
    path = {row.id: json.loads(row.body)["path"] for row in rows}
    for number, folder in trained:
        made = [row.id for row in rows if row.kind == "policy" and row.round == number]
        here = [id for id in made if f"{folder.parent.name}/{folder.name}/" in path[id]]
        if not here and borrowed_in(RunDir(folder.parent)):
            continue  # a run that borrowed it made them, and its own store knows them
        for id in here or made:  # of a run that was renamed nobody can tell which they are: all of that round
            learned.setdefault(id, "directly")
    rewards = {row.round: row.id for row in rows if row.kind == "reward_model" and row.id in learned}
    for row in rows:  # in the order they were made, so parents come first
        if row.kind == "policy" and row.id not in learned and (row.round in rewards or row.parent in learned):
            learned[row.id] = f"through {rewards.get(row.round, row.parent)}"
    return [
        {
            "id": row.id,
            "kind": row.kind,
            "round": row.round,
            "path": path[row.id],
            "promoted": row.id in in_force,
            "learned": learned[row.id],
        }
        for row in rows
        if row.id in learned
    ]


def _bodies(connection: sa.Connection, table: sa.Table, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    for chunk in chunks(ids):
        for body in _column(connection, table.c.body, chunk, key=table.c.id):
            yield json.loads(body)


def _ids_where(
    connection: sa.Connection, wanted: sa.ColumnElement[Any], column: sa.ColumnElement[Any], values: Iterable[str]
) -> set[str]:
    """`wanted` of the rows whose `column` is among `values`."""
    return {id for chunk in chunks(values) for id in _column(connection, wanted, chunk, key=column)}


def _delete_where(connection: sa.Connection, column: sa.Column[Any], values: Iterable[Any]) -> int:
    return sum(connection.execute(column.table.delete().where(column.in_(chunk))).rowcount for chunk in chunks(values))


def _column(
    connection: sa.Connection,
    wanted: sa.ColumnElement[Any],
    values: Sequence[Any],
    *where: sa.ColumnElement[bool],
    key: sa.ColumnElement[Any] | None = None,
) -> list[Any]:
    among = (wanted if key is None else key).in_(values)
    return list(connection.scalars(sa.select(wanted).where(among, *where)))
