"""What requests with an idempotency key were answered: a retry gets the first answer again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store

KEY_DAYS = 7
"""How long a retry with the same idempotency key gets the first answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredRequest:
    """A request and the answer that it got."""

    token_id: str  # whose
    key: str
    request_hash: str
    status: int
    body: str


def find_answered(transaction: Transaction, token_id: str, key: str) -> AnsweredRequest | None:
    """The request that this client made with this key, if it made one."""
    row = transaction.connection.execute(_ANSWERED, {"token_id": token_id, "key": key}).first()
    if row is None:
        return None
    return AnsweredRequest(token_id=token_id, key=key, request_hash=row.request_hash, status=row.status, body=row.body)


def note_answered(transaction: Transaction, request: AnsweredRequest) -> None:
    """Keeps an answer for retries."""
    row = {
        "token_id": request.token_id,
        "key": request.key,
        "request_hash": request.request_hash,
        "status": request.status,
        "body": request.body,
        "answered_at": time.time(),
    }
    transaction.connection.execute(_NOTE, row)


def forget_old_answers(store: Store, now: float) -> int:
    """Forgets the answers that are older than `KEY_DAYS` at `now` (seconds since the epoch); gives how many."""
    column = tables.answered_requests.c
    with store.transaction() as transaction:
        old = column.answered_at < now - KEY_DAYS * 86400
        return transaction.connection.execute(tables.answered_requests.delete().where(old)).rowcount


# Made once: making a statement takes longer than running it.
_ANSWERED = sa.select(tables.answered_requests).where(
    tables.answered_requests.c.token_id == sa.bindparam("token_id"),
    tables.answered_requests.c.key == sa.bindparam("key"),
)
_NOTE = tables.answered_requests.insert()
