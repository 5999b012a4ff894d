"""Users of applications: their pseudonyms, and what is kept of them, so that it can be deleted."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import sqlalchemy as sa

from rlhf_loop.feedback import tables
from rlhf_loop.feedback.store import Store
from rlhf_loop.feedback.tokens import signing_key


def user_key(store: Store, user: str) -> str:
    """The pseudonym of an application's user: a keyed hash of the application's name for them."""
    digest = hmac.new(signing_key(store, "user_key"), user.encode("utf-8", "replace"), hashlib.sha256)
    return f"user-{digest.hexdigest()[:24]}"


def remember(connection: sa.Connection, user: str, kind: str, ids: Iterable[str]) -> None:
    """Notes that these records are of the user with this pseudonym, in a writing transaction of the caller's."""
    table = tables.user_records
    wanted = list(dict.fromkeys(ids))
    mine = sa.and_(table.c.user == user, table.c.kind == kind, table.c.record_id.in_(wanted))
    known = set(connection.scalars(sa.select(table.c.record_id).where(mine)))
    rows = [{"user": user, "kind": kind, "record_id": id} for id in wanted if id not in known]
    if rows:
        connection.execute(table.insert(), rows)
