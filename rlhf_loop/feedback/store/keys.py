"""A store's own secrets."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import Database


def signing_key(database: Database, name: str) -> bytes:
    """The store's own key of this name, 32 random bytes made when first asked for.

    Whoever reads the store has it: it makes names into pseudonyms, and opens nothing.
    """
    column = tables.settings.c
    with database.read() as connection:
        kept = connection.scalar(sa.select(column.value).where(column.name == name))
    if kept is None:
        with database.write() as connection:
            kept = connection.scalar(sa.select(column.value).where(column.name == name))
            if kept is None:
                kept = secrets.token_hex(32)
                connection.execute(tables.settings.insert().values(name=name, value=kept))
    return bytes.fromhex(kept)


def forget_key(database: Database, name: str) -> bool:
    """Deletes the key of this name; False where there is none."""
    column = tables.settings.c
    with database.read() as connection:
        there = connection.scalar(sa.select(column.name).where(column.name == name)) is not None
    if there:
        with database.write() as connection:
            connection.execute(tables.settings.delete().where(column.name == name))
    return there
