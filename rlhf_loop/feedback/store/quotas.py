"""How much of a store, or of a project of it, may be used in a day: answers that the service stores, and their tokens.

The quota and what was used are kept in the store, so all services of a project count together and a restart forgets
nothing. Days are those of UTC. An answer counts when it is stored: those that are being written when the quota is
spent are finished, and may go over it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store

KINDS = ("answers", "tokens")
"""What a quota may limit: stored answers (each choice is one), and the tokens written in them."""

DAY = 86400

_QUOTA, _USED = "quota", "used_today"  # in the table of settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What may be used in a day, and what was used today."""

    quota: dict[str, int] = field(default_factory=dict)  # by `KINDS`; what is not named has no limit
    used: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds_left: int = DAY  # of the day

    @property
    def spent(self) -> str | None:
        """What of it is used up; None where nothing is."""
        return next((kind for kind, most in self.quota.items() if self.used[kind] >= most), None)

    def in_words(self) -> str:
        """The whole, for people."""
        parts = [
            f"{self.used[kind]:,} of {self.quota[kind]:,} {kind}"
            if kind in self.quota
            else f"{self.used[kind]:,} {kind}"
            for kind in KINDS
        ]
        return ", ".join(parts)


def usage(store: Store, now: float | None = None) -> Usage:
    """The quota of a store and what was used of it; `now`: seconds since the epoch, if not the time that it is."""
    now = time.time() if now is None else now
    with store.database.read() as connection:
        quota, used = _read(connection, _QUOTA), _read(connection, _USED)
    today = used.get("counts", {}) if used.get("day") == _day(now) else {}
    return Usage(
        quota={kind: quota[kind] for kind in KINDS if kind in quota},
        used={kind: today.get(kind, 0) for kind in KINDS},
        seconds_left=DAY - int(now) % DAY,
    )


def set_quota(store: Store, changes: Mapping[str, int | None]) -> None:
    """Sets what may be used of each kind in a day; None lifts the limit. Raises `UserError` for a number below 0."""
    for kind, most in changes.items():
        if kind not in KINDS:
            raise UserError(f"there is no quota of {kind}; there are: {', '.join(KINDS)}")
        if most is not None and most < 0:
            raise UserError(f"a quota of {most} {kind} cannot be: give 0 or more, or none for no limit")
    with store.database.write() as connection:
        quota = {**_read(connection, _QUOTA), **changes}
        _write(connection, _QUOTA, {kind: most for kind, most in quota.items() if most is not None})


def note_used(transaction: Transaction, now: float | None = None, **counts: int) -> None:
    """Adds to what was used today, in the transaction that stores it."""
    day = _day(time.time() if now is None else now)
    kept = _read(transaction.connection, _USED)
    before = kept.get("counts", {}) if kept.get("day") == day else {}
    used = {kind: before.get(kind, 0) + counts.get(kind, 0) for kind in KINDS}
    _write(transaction.connection, _USED, {"day": day, "counts": used})


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _read(connection: sa.Connection, name: str) -> dict[str, Any]:
    value = connection.scalar(_VALUE, {"wanted": name})
    return {} if value is None else dict(json.loads(value))


def _write(connection: sa.Connection, name: str, value: Mapping[str, Any]) -> None:
    text, column = json.dumps(value), tables.settings.c
    if not connection.execute(tables.settings.update().where(column.name == name).values(value=text)).rowcount:
        connection.execute(tables.settings.insert().values(name=name, value=text))


_VALUE = sa.select(tables.settings.c.value).where(tables.settings.c.name == sa.bindparam("wanted"))
