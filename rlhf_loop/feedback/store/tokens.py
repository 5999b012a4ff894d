"""Tokens that open the service: made once, shown once, kept as a hash.

A token is 256 random bits, so its plain SHA-256 cannot be searched for; nothing slower is needed, as it would be for
passwords that people choose.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from rlhf_loop.errors import UserError, shortened
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store

Role = Literal["app", "annotator", "admin"]
"""app: chat and feedback of an application. annotator: the annotation page. admin: everything."""

PREFIX = "rlhf-"
_WITH_HASH = sa.select(tables.tokens).where(tables.tokens.c.hash == sa.bindparam("hash"))
_NAME = re.compile(r"[\w .@-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """What the store knows of a token: not the token itself."""

    id: str
    role: Role
    name: str  # whose it is; of an annotator, the pseudonym in their feedback
    created_at: float  # seconds since the epoch
    revoked_at: float | None = None


def create(store: Store, role: Role, name: str) -> tuple[Token, str]:
    """A new token, and its secret, which cannot be had again.

    Raises `UserError` for an unknown role, a name that is no short plain text, and a name that a token of the same
    role has already (two people under one name would count as one annotator).
    """
    if role not in get_args(Role):
        raise UserError(f"there is no role `{role}`; choose {', '.join(get_args(Role))}")
    if not _NAME.fullmatch(name):
        raise UserError(f"the name {shortened(name)!r} must be 1 to 64 letters, digits, spaces or any of . @ _ -")
    secret = PREFIX + secrets.token_urlsafe(32)
    token = Token(id="token-" + secrets.token_hex(6), role=role, name=name, created_at=time.time())
    column = tables.tokens.c
    with store.database.write() as connection:
        same = sa.select(column.id).where(column.role == role, column.name == name, column.revoked_at.is_(None))
        if taken := connection.scalar(same):
            raise UserError(
                f"{name} has a token of the role {role} already ({taken}); choose another name, or revoke that one "
                "first: rlhf-loop token revoke"
            )
        values = {"id": token.id, "role": role, "name": name, "created_at": token.created_at}
        connection.execute(tables.tokens.insert().values(hash=_hash(secret), **values))
    return token, secret


def listed(store: Store) -> list[Token]:
    """All tokens that were ever made, oldest first."""
    with store.database.read() as connection:
        return [_token(row) for row in connection.execute(sa.select(tables.tokens).order_by(tables.tokens.c.number))]


def revoke(store: Store, id: str) -> Token:
    """Makes a token worthless from now on; a second time changes nothing. Raises `UserError` for an unknown id."""
    column = tables.tokens.c
    with store.database.write() as connection:
        current = sa.and_(column.id == id, column.revoked_at.is_(None))
        connection.execute(tables.tokens.update().where(current).values(revoked_at=time.time()))
        row = connection.execute(sa.select(tables.tokens).where(column.id == id)).first()
        if row is None:
            raise UserError(f"there is no token {id}; `rlhf-loop token list` shows those that there are")
        return _token(row)


def find(store: Store, secret: str) -> Token | None:
    """The token with this secret, or None where there is none or it was revoked."""
    wanted = _hash(secret)
    with store.database.read() as connection:
        row = connection.execute(_WITH_HASH, {"hash": wanted}).first()
    if row is None or not hmac.compare_digest(row.hash, wanted) or row.revoked_at is not None:
        return None
    return _token(row)


def by_id(store: Store, id: str) -> Token | None:
    """The token with this id, or None where there is none or it was revoked."""
    with store.database.read() as connection:
        row = connection.execute(sa.select(tables.tokens).where(tables.tokens.c.id == id)).first()
    return None if row is None or row.revoked_at is not None else _token(row)


def any_made(store: Store) -> bool:
    """Whether a token was ever made, revoked or not."""
    with store.database.read() as connection:
        return connection.scalar(sa.select(tables.tokens.c.number).limit(1)) is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: Any) -> Token:
    return Token(id=row.id, role=row.role, name=row.name, created_at=row.created_at, revoked_at=row.revoked_at)
