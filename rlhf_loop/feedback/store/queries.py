"""What all of the store does to any of its tables: records by id, which ids there are, rows put in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import CHUNK, chunks
from rlhf_loop.feedback.store.table_rows import READ, TableRow, as_columns, records_of


def read_records(
    connection: sa.Connection,
    table: sa.Table,
    record_type: Any,
    ids: Iterable[str] | None,
    *where: sa.ColumnElement[bool],
    key: sa.ColumnElement[Any] | None = None,
) -> list[Any]:
    """Records that meet `where` and, when `ids` are given, whose `key` (default: id) is among them."""
    columns = [table.c[name] for name in ("number", *READ.get(table.name, ("body",)))]
    query = sa.select(*columns).where(*where).order_by(table.c.number)
    if ids is None:
        parts = connection.execute(query.execution_options(yield_per=CHUNK)).partitions()
        return [record for rows in parts for record in records_of(record_type, rows)]
    column = table.c.id if key is None else key
    found = [row for chunk in chunks(ids) for row in connection.execute(query.where(column.in_(chunk)))]
    return records_of(record_type, sorted(found, key=lambda row: row.number))


def known_ids(connection: sa.Connection, table: sa.Table, ids: Iterable[str]) -> set[str]:
    """Those of the ids that the table has."""
    known: set[str] = set()
    for chunk in chunks(ids):
        known.update(connection.scalars(sa.select(table.c.id).where(table.c.id.in_(chunk))))
    return known


def deleted_ids(connection: sa.Connection, kind: str, ids: Iterable[str]) -> set[str]:
    """Those of the ids (`kind`: prompt, completion, feedback) whose records were deleted on request."""
    stone, found = tables.tombstones.c, set[str]()
    for chunk in chunks(ids):
        found.update(
            connection.scalars(sa.select(stone.record_id).where(stone.kind == kind, stone.record_id.in_(chunk)))
        )
    return found


def insert_rows(connection: sa.Connection, table: sa.Table, rows: Iterable[TableRow]) -> int:
    """Puts rows in; returns how many."""
    named = [as_columns(table.name, row) for row in rows]
    if named:
        connection.execute(table.insert(), named)
    return len(named)


def count(connection: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    """How many rows of a table meet `where`."""
    return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*where)) or 0


def equal(wanted: Mapping[Any, Any]) -> list[sa.ColumnElement[bool]]:
    """Conditions: the columns have these values; None asks for nothing."""
    return [column == value for column, value in wanted.items() if value is not None]
