"""What has arrived in the store since a snapshot was taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.feedback.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """What has arrived for a round, valid or not: quick to count."""

    next_round: int
    fresh: set[str]  # ids of feedback that the last snapshot had not looked at
    oldest: float | None  # when the first of the fresh ones was made, in seconds since the epoch
    kinds: Counter[str] = field(default_factory=Counter)  # of the fresh ones; `both_bad` may be such a preference


def arrivals_after(store: Store, number: int, last_round: int) -> Arrivals:
    """The feedback in force of rounds up to `last_round` that came after the one with this number.

    All of `last_round` itself counts as such: a round's snapshot takes no feedback of its own round, even if it is
    there.
    """
    column = tables.feedback.c
    bad = sa.and_(column.kind == "preference", column.body.contains("both_bad"))
    kind = sa.case((bad, "both_bad"), else_=column.kind).label("kind")
    unseen = sa.or_(column.number > number, column.round == last_round)
    with store.database.read() as connection:
        rows = connection.execute(
            sa.select(column.id, column.created_at, kind).where(column.round <= last_round, unseen, in_force())
        ).all()
    oldest = min((row.created_at for row in rows), default=None)
    kinds = Counter(row.kind for row in rows)
    return Arrivals(next_round=last_round + 1, fresh={row.id for row in rows}, oldest=oldest, kinds=kinds)


def newest_number(store: Store, ids: Iterable[str]) -> int | None:
    """The number of the piece of feedback among these that arrived last; None where none of them is there."""
    column = tables.feedback.c
    newest = sa.select(sa.func.max(column.number))
    with store.database.read() as connection:
        found = [connection.scalar(newest.where(column.id.in_(chunk))) for chunk in chunks(ids)]
    return max((number for number in found if number is not None), default=None)


def state_of(store: Store) -> Any:
    """Something that changes with every prompt or piece of feedback that is added or deleted."""
    with store.database.read() as connection:
        return [
            tuple(connection.execute(sa.select(sa.func.max(table.c.number), sa.func.count()).select_from(table)).one())
            for table in (tables.feedback, tables.prompts, tables.tombstones)
        ]
