"""The queue of questions: who may judge what, and leases, so that two people never get the same slot.

A question has `overlap` slots, one a person. A slot is taken by a lease, which ends by itself, or by an effective
preference about the question's pair, which stays. A question with all slots filled by preferences is answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import in_force, is_open
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.records import Question, from_dict


def claim(connection: sa.Connection, who: str, n: int, seconds: float) -> list[Question]:
    """Leases up to `n` open questions to `who`, the most worthwhile first.

    A question goes to at most `overlap` people. None gets it twice, nor one that they have skipped, until `seconds`
    have passed or the lease was released.

    The connection's transaction must be a writing one, and need keep no others from writing (`exclusive=False`): on
    PostgreSQL it locks the questions' rows.
    """
    now = time.time()
    question = tables.questions.c
    taken = (
        sa.select(question.id, question.body)
        .where(is_open(), *_free_for(who, now))
        .order_by(question.priority.desc(), question.number)
        .limit(n)
        .with_for_update(skip_locked=True)  # left out on SQLite, where the transaction holds the write lock
    )
    rows = connection.execute(taken).all()
    if connection.dialect.name != "sqlite" and rows:
        # The first statement may have begun before somebody else's lease was committed; this one sees it.
        ids = [row.id for row in rows]
        still = set(connection.scalars(sa.select(question.id).where(question.id.in_(ids), *_free_for(who, now))))
        rows = [row for row in rows if row.id in still]
    lease = tables.leases
    mine = sa.and_(lease.c.annotator == who, lease.c.question_id.in_([row.id for row in rows]))
    connection.execute(lease.delete().where(mine))
    if rows:
        values = [{"question_id": row.id, "annotator": who, "since": now, "until": now + seconds} for row in rows]
        connection.execute(lease.insert(), values)
    return [from_dict(Question, json.loads(row.body)) for row in rows]


def held(connection: sa.Connection, who: str) -> list[tuple[Question, float]]:
    """The questions that `who` holds a lease on, oldest lease first, each with when it was taken."""
    question, lease = tables.questions.c, tables.leases.c
    rows = connection.execute(
        sa.select(question.body, lease.since)
        .join(tables.leases, lease.question_id == question.id)
        .where(lease.annotator == who, lease.until > time.time())
        .order_by(lease.since, question.priority.desc(), question.number)
    )
    return [(from_dict(Question, json.loads(row.body)), row.since) for row in rows]


def extend(connection: sa.Connection, who: str, question_id: str, seconds: float) -> bool:
    """Makes a lease that is still held end `seconds` from now; False when it has ended."""
    lease, now = tables.leases.c, time.time()
    mine = sa.and_(lease.annotator == who, lease.question_id == question_id, lease.until > now)
    return bool(connection.execute(tables.leases.update().where(mine).values(until=now + seconds)).rowcount)


def release(connection: sa.Connection, who: str, question_ids: Iterable[str] | None = None) -> int:
    """Ends the leases of `who` (on these questions, or all); returns how many were still held."""
    lease = tables.leases.c
    mine = [lease.annotator == who]
    if question_ids is not None:
        mine.append(lease.question_id.in_(list(question_ids)))
    still = connection.scalar(
        sa.select(sa.func.count()).select_from(tables.leases).where(*mine, lease.until > time.time())
    )
    connection.execute(tables.leases.delete().where(*mine))
    return int(still or 0)


def settle(connection: sa.Connection, pairs: Iterable[str]) -> None:
    """Brings `answered` up to date for the questions about these pairs, and ends leases that were answered."""
    question, lease = tables.questions.c, tables.leases.c
    for chunk in chunks(pairs):
        about = question.pair.in_(chunk)
        full = _judges(question.pair) >= question.overlap
        connection.execute(tables.questions.update().where(about).values(answered=full))
        ids = sa.select(question.id).where(about)
        spoken = sa.select(sa.literal(1)).where(
            tables.feedback.c.pair.in_(
                sa.select(question.pair).where(question.id == lease.question_id).correlate(tables.leases)
            ),
            _plain(tables.feedback.c.annotator) == lease.annotator,
            _plain(tables.feedback.c.kind).in_(("preference", "skip")),
            in_force(),
        )
        connection.execute(tables.leases.delete().where(lease.question_id.in_(ids), spoken.exists()))


def _free_for(who: str, now: float) -> list[sa.ColumnElement[bool]]:
    """Conditions on a question: a slot is free, and `who` has neither judged, nor skipped, nor leased it."""
    question, lease = tables.questions.c, tables.leases.c
    live = sa.and_(lease.question_id == question.id, lease.until > now)
    leased = sa.select(sa.func.count()).select_from(tables.leases).where(live).scalar_subquery()
    said = tables.feedback.alias("said")
    spoken = sa.select(sa.literal(1)).where(
        said.c.pair == question.pair,
        _plain(said.c.annotator) == who,
        _plain(said.c.kind).in_(("preference", "skip")),
        in_force(said),
    )
    mine = sa.select(sa.literal(1)).where(live, lease.annotator == who)
    return [
        sa.not_(spoken.exists()),
        sa.not_(mine.exists()),
        leased + _judges(question.pair) < question.overlap,
    ]


def _judges(pair: sa.ColumnElement[str]) -> Any:
    """How many people's effective preferences there are about a pair."""
    judged = tables.feedback.alias("judged")
    return (
        sa.select(sa.func.count(sa.distinct(judged.c.annotator)))
        .where(judged.c.pair == pair, _plain(judged.c.kind) == "preference", in_force(judged))
        .scalar_subquery()
    )


def _plain(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The column without its index: SQLite, which counts nothing by itself, would take that of the kind, which finds
    nearly all feedback, before that of the pair."""
    return sa.func.coalesce(column, "")
