"""Which projects a store has, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.location import SCHEMA_PREFIX, Location, locate, projects_beside, sqlite_path
from rlhf_loop.feedback.store.queries import count
from rlhf_loop.files.store_address import DEFAULT_PROJECT


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """A project of a store, in figures."""

    name: str
    prompts: int
    completions: int
    feedback: int
    policies: int


def listed(store: str | Path) -> list[Project]:
    """The projects of a store, the one that it has from the beginning first, the others by name.

    None is brought up to date for that. Raises `UserError` where the store cannot be read.
    """
    home = locate(store).of_project(None)
    if home.is_sqlite:
        return _listed_of_files(home)
    database = Database(home.database.render_as_string(hide_password=False))
    try:
        with database.read() as connection:
            found = [_figures(connection, DEFAULT_PROJECT)] if _is_store(connection) else []
            for name in projects_in(connection):
                schema = connection.execution_options(schema_translate_map={None: SCHEMA_PREFIX + name})
                found.append(_figures(schema, name))
            return found
    finally:
        database.close()


def projects_in(connection: sa.Connection) -> list[str]:
    """The names of the projects of a PostgreSQL database, but for the one that it has from the beginning."""
    query = sa.text(
        "SELECT n.nspname FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid "
        "WHERE starts_with(n.nspname, :prefix) AND c.relname = :table ORDER BY n.nspname"
    )
    names = connection.scalars(query, {"prefix": SCHEMA_PREFIX, "table": tables.VERSION_TABLE})
    return [name.removeprefix(SCHEMA_PREFIX) for name in names]


def _listed_of_files(home: Location) -> list[Project]:
    file, found = sqlite_path(home.database), []
    beside = projects_beside(file) if file is not None else []
    for name in [None, *beside]:
        location = home.of_project(name)
        if name is None and beside and file is not None and not file.exists():
            continue  # only its projects are used
        database = Database(location.url.render_as_string(), create=False)
        try:
            with database.read() as connection:
                if _is_store(connection):
                    found.append(_figures(connection, location.shown_project))
        finally:
            database.close()
    return found


def _is_store(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table(tables.VERSION_TABLE)


def _figures(connection: sa.Connection, name: str) -> Project:
    """Of the project whose tables the connection sees; every schema that there was has these tables."""
    return Project(
        name=name,
        prompts=count(connection, tables.prompts),
        completions=count(connection, tables.completions),
        feedback=count(connection, tables.feedback),
        policies=count(connection, tables.artifacts, tables.artifacts.c.kind == "policy"),
    )
