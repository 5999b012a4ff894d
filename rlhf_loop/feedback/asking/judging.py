"""One person's sitting: the next card, what they say of it, and taking the last answer back.

A card is a question that a person has leased. Its two answers are shown as A and B in an order that depends on the
person and the question alone (`shown_order`), so a card looks the same when it comes back. What a person submits is
written in one transaction, under ids made of the person and of the page's id of the submission: a double click or a
retry finds it there and changes nothing. Nothing is refused because it came late.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Literal

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.asking.calibration import claim_calibration, is_calibration_turn
from rlhf_loop.feedback.asking.judgements import SOURCE, Judgement, further_ids, records_of_judgement, retraction
from rlhf_loop.feedback.store import question_queue, tables
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import pair_key, records_of
from rlhf_loop.records import (
    Completion,
    Feedback,
    Question,
    Retraction,
    from_dict,
    stable_id,
)

_CARD_LOCK = 0x43415244  # an arbitrary number, for PostgreSQL


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What became of a judgement."""

    feedback_ids: tuple[str, ...]
    note: Literal["", "extra", "replaced"] = ""
    """extra: the card had run out and others have filled it; replaced: an earlier answer of the same person gave way"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a person, and the queue, have come."""

    today: int  # cards judged or skipped since the time asked for
    total: int  # ever
    open: int  # questions that wait for somebody


def next_card(store: Store, who: str, seconds: float, calibration_share: float = 0.0) -> tuple[Question, float] | None:
    """The card that `who` holds, or else a new one leased for `seconds`, with when it was taken; None: nothing to do.

    With a `calibration_share` some cards have known answers; which ones depends on who asks and how many they did.
    """
    with store.database.read() as connection:
        holding = question_queue.held(connection, who)
        done = _said(connection, who)
    if holding:
        return holding[0]
    with store.database.write(exclusive=False) as connection:
        if not store.database.is_sqlite:  # where another page of the same person may be here too
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CARD_LOCK, sa.func.hashtext(who))))
        if holding := question_queue.held(connection, who):
            return holding[0]
        claimed = question_queue.claim(connection, who, 1, seconds)
        if claimed and is_calibration_turn(who, done, calibration_share):
            known = claim_calibration(connection, who, seconds)
            if known is not None:
                question_queue.release(connection, who, [claimed[0].id])
                claimed = [known]
    return (claimed[0], time.time()) if claimed else None


def extend(store: Store, who: str, question_id: str, seconds: float) -> bool:
    """Keeps a card for `seconds` more; False when it is no longer held."""
    with store.database.write(exclusive=False) as connection:
        return question_queue.extend(connection, who, question_id, seconds)


def release(store: Store, who: str, question_id: str) -> bool:
    """Gives a card back unjudged; False when it was not held."""
    with store.database.write(exclusive=False) as connection:
        return question_queue.release(connection, who, [question_id]) > 0


def submit(store: Store, who: str, judgement: Judgement, round: int) -> Kept:
    """Stores what `who` says of a card; a second time the same submission changes nothing.

    `round`: the last one that has taken its snapshot; the question's own counts where that is later. A card that ran
    out is taken all the same, and an answer to a card that they answered before replaces it. Raises `UserError` for a
    question that is not there, and for spans outside the answers.
    """
    verdict_id = stable_id(SOURCE, who, judgement.submission)
    with store.transaction() as transaction:
        connection = transaction.connection
        there = _feedback(connection, tables.feedback.c.id.in_([verdict_id, *further_ids(verdict_id)]))
        if there:
            return Kept(feedback_ids=tuple(record.id for record in there))
        question = _question(connection, judgement.question_id)
        if question is None:
            raise UserError(f"there is no question {judgement.question_id[:80]!r} in the queue; load the page again")
        lease = _lease(connection, who, question.id)
        earlier = _last(connection, who, tables.feedback.c.pair == pair_key(question.a_id, question.b_id))
        full = connection.scalar(sa.select(tables.questions.c.answered).where(tables.questions.c.id == question.id))
        completions = _completions(connection, question)
        records = records_of_judgement(
            who, judgement, question, completions, verdict_id, max(round, question.round), lease
        )
        if earlier is not None:
            records[0] = replace(records[0], supersedes=earlier.id)
            parts = _feedback(connection, tables.feedback.c.id.in_(further_ids(earlier.id)))
            records += [retraction(part, records[0].round) for part in parts]
        transaction.add_feedback(records)
    in_time = lease is not None and lease[1] > time.time()
    extra = bool(full) and not in_time and question.overlap > 0
    ids = tuple(record.id for record in records if not isinstance(record, Retraction))
    return Kept(feedback_ids=ids, note="replaced" if earlier is not None else "extra" if extra else "")


def undo(store: Store, who: str, seconds: float, round: int) -> Question | None:
    """Takes back what `who` said last on a card, and gives them the card again.

    None when there is nothing to take back. A model that was trained on it stays as it is; later rounds leave it out.
    """
    with store.transaction() as transaction:
        connection = transaction.connection
        last = _last(connection, who)
        question = _question(connection, str(last.external_id)) if last is not None else None
        if last is None or question is None:
            return None
        question_queue.release(connection, who, [question.id])
        now = time.time()  # the lease comes first, so that the retraction leaves no slot free for somebody else
        lease = {"question_id": question.id, "annotator": who, "since": now, "until": now + seconds}
        connection.execute(tables.leases.insert().values(lease))
        parts = _feedback(connection, tables.feedback.c.id.in_(further_ids(last.id)))
        transaction.add_feedback([retraction(record, round) for record in [last, *parts]])
        return question


def progress(store: Store, who: str, since: float) -> Progress:
    """Counts for the page; `since`: when the person's day began, in seconds since the epoch."""
    with store.database.read() as connection:
        return Progress(
            today=_said(connection, who, since),
            total=_said(connection, who),
            open=store.open_questions(),
        )


# -- a judgement as records --------------------------------------------------------------------------------------------


# -- reading -----------------------------------------------------------------------------------------------------------


def _question(connection: sa.Connection, id: str) -> Question | None:
    body = connection.scalar(sa.select(tables.questions.c.body).where(tables.questions.c.id == id))
    return None if body is None else from_dict(Question, json.loads(body))


def _completions(connection: sa.Connection, question: Question) -> dict[str, Completion]:
    column = tables.completions.c
    rows = connection.execute(sa.select(tables.completions).where(column.id.in_([question.a_id, question.b_id])))
    return {completion.id: completion for completion in records_of(Completion, rows)}


def _feedback(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[Feedback]:
    rows = connection.scalars(sa.select(tables.feedback.c.body).where(where).order_by(tables.feedback.c.number))
    return [from_dict(Feedback, json.loads(body)) for body in rows]


def _last(connection: sa.Connection, who: str, *where: sa.ColumnElement[bool]) -> Feedback | None:
    """The newest effective preference or skip that `who` gave on a card."""
    column = tables.feedback.c
    newest = sa.select(column.body).where(column.annotator == who, *_verdicts(), *where).order_by(column.number.desc())
    said = (from_dict(Feedback, json.loads(body)) for body in connection.scalars(newest))
    return next((record for record in said if record.source == SOURCE), None)


def _said(connection: sa.Connection, who: str, since: float | None = None) -> int:
    """How many cards `who` judged or skipped, since then or ever."""
    column = tables.feedback.c
    where = [column.annotator == who, *_verdicts()]
    if since is not None:
        where.append(column.created_at >= since)
    return connection.scalar(sa.select(sa.func.count()).select_from(tables.feedback).where(*where)) or 0


def _verdicts() -> list[sa.ColumnElement[bool]]:
    """Conditions on feedback: it is a preference or a skip, and in force."""
    return [tables.feedback.c.kind.in_(("preference", "skip")), in_force()]


def _lease(connection: sa.Connection, who: str, question_id: str) -> tuple[float, float] | None:
    """Since when and until when `who` holds, or held, a card."""
    lease = tables.leases.c
    row = connection.execute(
        sa.select(lease.since, lease.until).where(lease.annotator == who, lease.question_id == question_id)
    ).first()
    return None if row is None else (row.since, row.until)
