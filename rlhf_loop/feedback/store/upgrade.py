"""Bringing a store's schema up to date: numbered migrations, all of them in one transaction."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.location import no_such_project
from rlhf_loop.feedback.store.projects import projects_in
from rlhf_loop.feedback.store.tables import SCHEMA, VERSION_TABLE, metadata


def upgrade(database: Database, create: bool = True) -> bool:
    """Makes the tables of a new store, or of a new project of one, or brings those of an older one up to date; gives
    whether it is new.

    `create=False`: a project that is not there is an error. Raises `UserError` for a schema from the future, tables of
    something else, and a store that cannot be written.
    """
    project = database.location.schema
    with database.read() as connection:
        current = _schema(connection)
        if current == SCHEMA:
            return False
        if current is None and project is not None and not create:
            raise no_such_project(database.location, projects_in(connection))
    if database.only_read:
        made = f"was written by another version (schema {current})" if current else "holds no store yet"
        raise UserError(
            f"{database.name} {made}, and is only read here, where the schema is {SCHEMA}: have this version of "
            "rlhf-loop open it as its own first, such as with `rlhf-loop feedback stats --store`"
        )
    if database.read_only:
        raise database.not_writable("it is of an earlier version and has to be brought up to date")
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with database.write() as connection:
        if project is not None and not sa.inspect(connection).has_schema(
            project
        ):  # even that it is there takes a right
            connection.execute(sa.schema.CreateSchema(project))
        current = _schema(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if current is not None and current not in known:
            raise UserError(
                f"{database.name} was written by a newer rlhf-loop (schema {current}; this one knows up to {SCHEMA}). "
                "Upgrade rlhf-loop, or use another store"
            )
        if current is None:
            _refuse_foreign(database, connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return current is None


def _schema(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return revision


def _refuse_foreign(database: Database, connection: sa.Connection) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    foreign = tables if database.is_sqlite else tables & set(metadata.tables)
    if foreign:
        raise UserError(
            f"{database.name} holds tables of something else ({', '.join(sorted(foreign)[:3])}) and is no rlhf-loop "
            "store; nothing was changed. Give another file or database"
        )
