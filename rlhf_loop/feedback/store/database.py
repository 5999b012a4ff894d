"""The store's database, SQLite or PostgreSQL, and its transactions.

Every write is one transaction that starts by taking the write lock (`BEGIN IMMEDIATE`; on PostgreSQL an advisory
lock), so "read what is there, then add what is missing" cannot race. What this does not protect against: a disk that
loses data after fsync.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchModuleError
from sqlalchemy.pool import StaticPool

from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.store.database_errors import explain_postgres, explain_sqlite, holders, not_writable
from rlhf_loop.feedback.store.location import (
    check_file,
    is_writable,
    locate,
    read_only_url,
    refuse_unknown,
    sqlite_path,
)
from rlhf_loop.files import private
from rlhf_loop.machine import network_file_system

PAGE_BYTES = 16384
"""Of a new SQLite file: a row of ours takes a quarter of a page of 4 KiB, and larger pages hold more of an index."""

CACHE_KIB = 64 * 1024
"""Of a SQLite file that a connection may hold in memory: indexes are written in random order."""

SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a file, by the ends of their names; they hold what is written too."""

CHUNK = 5000
"""Ids in one IN list: SQLite takes 32,766 values in a statement, PostgreSQL 65,535."""

POOL_SECONDS = 30.0
"""How long to wait for one of the connections (15 a process) when all are in use."""

_WRITE_LOCK = 0x524C4846  # an arbitrary number that all users of the store share


class Database:
    """An open database; `read()` and `write()` give a connection inside a transaction."""

    def __init__(self, url: str | Path, busy_seconds: float = 30.0, create: bool = True, only_read: bool = False):
        """`url` as in `Store.open`. `only_read`: nothing of it is changed, even where that may be. Raises `UserError`
        when it cannot be opened."""
        self.only_read = only_read
        self.location = locate(url)
        self.url = self.location.url
        self.path = sqlite_path(self.url)
        self.is_sqlite = self.location.is_sqlite
        self._memory_lock = threading.RLock() if self.is_sqlite and self.path is None else None
        # SQLite makes whoever finds it locked sleep for up to 100 ms; threads of one process need not.
        self._write_lock = threading.RLock() if self.path is not None else None
        self._reading = threading.local()
        check_file(self.location, create)
        self.read_only = self.path is not None and not is_writable(self.path)
        self.engine = self._make_engine(busy_seconds)
        self._busy_seconds = busy_seconds

    @property
    def name(self) -> str:
        """The database, with the project, for messages: no password in it."""
        return self.location.name

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection in a transaction that sees one state of the database.

        Inside another `read` of the same thread it is that one, so a caller who holds one open sees the same state
        through all that is read meanwhile.
        """
        outer: sa.Connection | None = getattr(self._reading, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._transaction(write=False) as connection:
            self._reading.connection = connection
            try:
                yield connection
            finally:
                self._reading.connection = None

    @contextmanager
    def write(self, exclusive: bool = True) -> Iterator[sa.Connection]:
        """A connection in a transaction that is committed at the end, or undone when an exception leaves it.

        Not of a database that is only read. `exclusive=False`: on PostgreSQL without the lock on all writes, for those
        that lock rows themselves.
        """
        assert not self.only_read
        with self._transaction(write=True) as connection:
            if exclusive and not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(*_write_lock(self.location.project))))
            yield connection

    def overwrite_deleted(self, seconds: float = 10.0) -> str | None:
        """Overwrites what was deleted, in the file and in its write-ahead log; waits `seconds` for those who read.

        Gives None when it is done, else why it is not, and what to do. On PostgreSQL that is its vacuum's work.
        SQLite's `secure_delete` alone leaves copies behind where rows were moved within a page, so all is written anew.
        """
        if self.path is None:
            return None
        deadline = time.monotonic() + seconds
        with self._write_lock or nullcontext(), self._explained(), self.engine.connect() as connection:
            own: Any = connection.connection.driver_connection
            own.execute("PRAGMA busy_timeout = 250")
            try:
                # Not while somebody reads: the log would grow to the size of the file, and could not be emptied.
                while not (_emptied(own) and _rewritten(own) and _emptied(own)):
                    if time.monotonic() > deadline:
                        return (
                            f"copies of deleted texts may still stand in {self.path} and {self.path.name}-wal, for it "
                            f"is in use by another process{holders(self.path)}. Wait until that is done or stop it, "
                            "then type the same command again"
                        )
                    time.sleep(0.05)
            except sqlite3.OperationalError as error:
                return f"copies of deleted texts may still stand in {self.path}: {error}. Mend that, and do it again"
            finally:
                own.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        return None

    def tighten(self) -> None:
        """Leaves the file, and what SQLite keeps beside it, to this user alone; on a file that may be written."""
        if self.path is not None and not self.read_only:  # it is ours
            private.tighten(self.path, *(self.path.with_name(self.path.name + end) for end in SIDE_FILES))

    def not_writable(self, why: str) -> StoreUnavailable:
        """The error of a store that may only be read."""
        return not_writable(self.name, why)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self, write: bool) -> Iterator[sa.Connection]:
        with self._memory_lock or (self._write_lock if write else None) or nullcontext(), self._explained():
            with self.engine.connect() as connection:
                options: dict[str, Any] = {"write": write}
                if not write and not self.is_sqlite:  # by default each statement there sees a state of its own
                    options["isolation_level"] = "REPEATABLE READ"
                    options["postgresql_readonly"] = self.only_read
                with connection.execution_options(**options).begin():
                    yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            explained = (
                explain_sqlite(error, self.name, self.path, self._busy_seconds)
                if self.is_sqlite
                else explain_postgres(error, self.name)
            )
            if explained is None:
                raise
            raise explained from error
        except sa.exc.TimeoutError as error:
            raise StoreUnavailable(
                f"all connections to {self.name} are in use, and stayed so for {POOL_SECONDS:g} seconds; try again"
            ) from error
        except OverflowError as error:
            raise UserError(f"{self.name}: a number is too large for the store ({error})") from error

    def _make_engine(self, busy_seconds: float) -> sa.Engine:
        if not self.is_sqlite:
            try:
                options = (
                    {"connect_timeout": max(2, int(busy_seconds))} if "connect_timeout" not in self.url.query else {}
                )
                engine = sa.create_engine(
                    self.url, connect_args=options, pool_pre_ping=True, pool_timeout=POOL_SECONDS, hide_parameters=True
                )
            except (ModuleNotFoundError, NoSuchModuleError) as error:
                raise UserError(
                    f"PostgreSQL needs a driver that is not installed ({error}); pip install 'rlhf-loop[postgres]'"
                ) from None
            refuse_unknown(self.name, self.url.query, _postgres_keys())
            if self.location.schema is not None:
                _stay_in(engine, self.location.schema)
            return engine
        if self.path is None:
            engine = sa.create_engine(
                self.url, poolclass=StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
            )
        else:
            url = read_only_url(self.path) if self.read_only else self.url
            engine = sa.create_engine(
                url, connect_args={"timeout": busy_seconds}, pool_timeout=POOL_SECONDS, hide_parameters=True
            )
        network = network_file_system(self.path) if self.path else None
        if network:
            warnings.warn(
                f"{self.path} lies on a network file system ({network}), where SQLite's write-ahead log is unsafe: the "
                "slower rollback journal is used. Keep the store on a local disk, or use PostgreSQL (`store: "
                "postgresql://...`)",
                stacklevel=4,
            )
        journal = "DELETE" if network else "WAL"

        @sa.event.listens_for(engine, "connect")
        def _configure(connection: Any, record: Any) -> None:
            connection.isolation_level = None  # transactions are begun below, with the lock they need
            connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted or replaced is overwritten
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file that is empty yet
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if self.only_read:
                connection.execute("PRAGMA query_only = ON")
            elif self.path is not None and not self.read_only:
                if connection.execute("PRAGMA journal_mode").fetchone()[0].upper() != journal:
                    _set_journal(connection, journal, busy_seconds)
                connection.execute("PRAGMA synchronous = NORMAL" if journal == "WAL" else "PRAGMA synchronous = FULL")

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            write = connection.get_execution_options().get("write")
            if write and self.read_only:
                raise self.not_writable("this command has to write to it")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Different ids, in order, as many at a time as go into one IN list."""
    unique = list(dict.fromkeys(ids))
    for start in range(0, len(unique), CHUNK):
        yield unique[start : start + CHUNK]


def _postgres_keys() -> list[str]:
    """What the URL of a PostgreSQL database may set."""
    from psycopg.pq import Conninfo

    return ["project", *(option.keyword.decode() for option in Conninfo.get_defaults())]


def _write_lock(project: str | None) -> tuple[int, ...]:
    """The keys of the advisory lock on all writes to a project: those to others do not wait for it."""
    return (_WRITE_LOCK,) if project is None else (_WRITE_LOCK, zlib.crc32(project.encode()) - 2**31)


def _stay_in(engine: sa.Engine, schema: str) -> None:
    """Has every connection see the tables of this schema alone."""

    @sa.event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy asks which schema it is in
    def _enter(connection: Any, record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('search_path', %s, false)", [f'"{schema}"'])
        connection.commit()  # or the end of the first transaction that fails would undo it


def _set_journal(connection: Any, journal: str, busy_seconds: float) -> None:
    """Switches the journal. SQLite does not wait for others here, whatever its busy timeout, so this does."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode = {journal}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _emptied(connection: sqlite3.Connection) -> bool:
    """Brings the write-ahead log into the file and cuts it to nothing; False where somebody still reads from it."""
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return not busy


def _rewritten(connection: sqlite3.Connection) -> bool:
    """Writes the whole file anew; False where somebody else writes."""
    try:
        connection.execute("VACUUM")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True
