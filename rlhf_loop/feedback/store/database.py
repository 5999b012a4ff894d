"""Opening the store's database: SQLite or PostgreSQL, its transactions, its schema, and its errors in words.

Every write is one transaction that starts by taking the write lock (`BEGIN IMMEDIATE`; on PostgreSQL an advisory
lock), so "read what is there, then add what is missing" cannot race. What this does not protect against: a disk that
loses data after fsync.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from rlhf_loop import private
from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.store.tables import SCHEMA, VERSION_TABLE, metadata

NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "pvfs2",
    "orangefs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.gcsfuse",
    "fuse.rclone", "fuse.juicefs",
}  # fmt: skip
"""Where SQLite's write-ahead log is unsafe: it needs memory shared among all users of the file."""

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

_SHARED_MEMORY = 2**16  # bytes free below which SQLite's shared memory does not fit

_WRITE_LOCK = 0x524C4846  # an arbitrary number that all users of the store share


class Database:
    """An open database; `read()` and `write()` give a connection inside a transaction."""

    def __init__(self, url: str | Path, busy_seconds: float = 30.0, create: bool = True):
        """`url` as in `Store.open`. Raises `UserError` when it cannot be opened or has a schema from the future."""
        self.url = parse_url(url)
        self.path = _sqlite_path(self.url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._memory_lock = threading.RLock() if self.is_sqlite and self.path is None else None
        # SQLite makes whoever finds it locked sleep for up to 100 ms; threads of one process need not.
        self._write_lock = threading.RLock() if self.path is not None else None
        self._reading = threading.local()
        if self.path is not None:
            _check_file(self.path, create)
        self.read_only = self.path is not None and not _writable(self.path)
        self.engine = self._make_engine(busy_seconds)
        self._busy_seconds = busy_seconds
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise
        if self.path is not None and not self.read_only:  # it is ours
            private.tighten(self.path, *(self.path.with_name(self.path.name + end) for end in SIDE_FILES))

    @property
    def name(self) -> str:
        """The database for messages: no password in it."""
        return str(self.path) if self.path else self.url.render_as_string(hide_password=True)

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

        `exclusive=False`: on PostgreSQL without the lock on all writes, for those that lock rows themselves.
        """
        with self._transaction(write=True) as connection:
            if exclusive and not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
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
                            f"is in use by another process{_holders(self.path)}. Wait until that is done or stop it, "
                            "then type the same command again"
                        )
                    time.sleep(0.05)
            except sqlite3.OperationalError as error:
                return f"copies of deleted texts may still stand in {self.path}: {error}. Mend that, and do it again"
            finally:
                own.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        return None

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
                with connection.execution_options(**options).begin():
                    yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            explained = self._explain(error)
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
                return sa.create_engine(
                    self.url, connect_args=options, pool_pre_ping=True, pool_timeout=POOL_SECONDS, hide_parameters=True
                )
            except (ModuleNotFoundError, NoSuchModuleError) as error:
                raise UserError(
                    f"PostgreSQL needs a driver that is not installed ({error}); pip install 'rlhf-loop[postgres]'"
                ) from None
        if self.path is None:
            engine = sa.create_engine(
                self.url, poolclass=StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
            )
        else:
            url = _read_only(self.path) if self.read_only else self.url
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
            if self.path is not None and not self.read_only:
                if connection.execute("PRAGMA journal_mode").fetchone()[0].upper() != journal:
                    _set_journal(connection, journal, busy_seconds)
                connection.execute("PRAGMA synchronous = NORMAL" if journal == "WAL" else "PRAGMA synchronous = FULL")

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            write = connection.get_execution_options().get("write")
            if write and self.read_only:
                raise self._not_writable("this command has to write to it")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _migrate(self) -> None:
        """Brings the schema up to date; all of it in one transaction."""
        with self.read() as connection:
            if self._schema(connection) == SCHEMA:
                return
        if self.read_only:
            raise self._not_writable("it is of an earlier version and has to be brought up to date")
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            current = self._schema(connection)
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise UserError(
                    f"{self.name} was written by a newer rlhf-loop (schema {current}; this one knows up to {SCHEMA}). "
                    "Upgrade rlhf-loop, or use another store"
                )
            if current is None:
                self._refuse_foreign(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _schema(self, connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        revision: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
        return revision

    def _refuse_foreign(self, connection: sa.Connection) -> None:
        tables = set(sa.inspect(connection).get_table_names())
        foreign = tables if self.is_sqlite else tables & set(metadata.tables)
        if foreign:
            raise UserError(
                f"{self.name} holds tables of something else ({', '.join(sorted(foreign)[:3])}) and is no rlhf-loop "
                "store; nothing was changed. Give another file or database"
            )

    def _explain(self, error: DBAPIError) -> UserError | None:
        """What keeps the store from being used, in words; None for an error of ours, such as in a query."""
        text = str(error.orig).strip()
        if isinstance(error, DataError):
            return UserError(f"{self.name}: a value cannot be stored ({text.splitlines()[0]})")
        if not self.is_sqlite:
            return self._explain_postgres(error, text)
        reason = getattr(error.orig, "sqlite_errorname", "")
        if reason.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreUnavailable(
                f"{self.name} is locked by another process{_holders(self.path)}, and stayed so for "
                f"{self._busy_seconds:g} seconds. Wait until it is done or stop it, then type the same command again; "
                "for many writers at once use PostgreSQL (`store: postgresql://...`)"
            )
        if reason == "SQLITE_NOTADB" and self.path is not None and _looks_like_rows(self.path):
            return UserError(
                f"{self.name} is no store but a file of rows; `rlhf-loop feedback import {self.name} --store "
                f"{self.path.with_suffix('.db')}` puts them into one"
            )
        if reason.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return StoreUnavailable(
                f"{self.name} is damaged or not a SQLite database ({text}). Move it away and restore a copy, or make a "
                f"new store and import an export into it; `sqlite3 {self.name} .recover` may save what is left"
            )
        if reason.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
            return self._not_writable(text)
        if reason.startswith("SQLITE_FULL") or (reason.startswith("SQLITE_IOERR") and self._disk_is_full()):
            return StoreUnavailable(
                f"the disk is full while writing {self.name}. What was saved before is safe: free some space and type "
                "the same command again"
            )
        if reason.startswith(("SQLITE_IOERR", "SQLITE_PROTOCOL", "SQLITE_NOMEM", "SQLITE_NOLFS")):
            return StoreUnavailable(f"{self.name}: {text}")
        return None

    def _not_writable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.name} cannot be written ({why}): the file or its folder can only be read by you. Check the "
            "permissions of both, and whether their disk is mounted read-only, then type the same command again"
        )

    def _disk_is_full(self) -> bool:
        """SQLite calls it an I/O error where the memory that its users share does not fit on the disk."""
        return self.path is not None and shutil.disk_usage(self.path.parent).free < _SHARED_MEMORY

    def _explain_postgres(self, error: DBAPIError, text: str) -> UserError | None:
        if isinstance(error, OperationalError) or error.connection_invalidated:
            return StoreUnavailable(
                f"the PostgreSQL server of {self.name} cannot be reached or refused: {text.splitlines()[0]}. Check "
                "that it runs and that host, port, user, password and database in the URL are right"
            )
        state = getattr(error.orig, "sqlstate", None)
        if state == "42501":  # insufficient privilege
            return StoreUnavailable(
                f"{self.name}: {text}. The user in the URL needs the right to create and fill tables"
            )
        if state == "25006":  # read-only transaction: a standby
            return StoreUnavailable(f"{self.name}: {text}. Give the URL of a server that can be written")
        return None


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Different ids, in order, as many at a time as go into one IN list."""
    unique = list(dict.fromkeys(ids))
    for start in range(0, len(unique), CHUNK):
        yield unique[start : start + CHUNK]


def parse_url(url: str | Path) -> URL:
    """`:memory:`, a path, `sqlite:///FILE` or `postgresql://...` as SQLAlchemy's URL; others are a `UserError`."""
    text = str(url)
    if text == ":memory:":
        return make_url("sqlite://")
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"the store's URL cannot be read ({error}); {_URLS}") from None
    name = parsed.drivername
    if name == "sqlite":
        if parsed.host:
            raise UserError(f"`{text}`: a SQLite file takes three slashes, sqlite:///{parsed.host}/...; {_URLS}")
        return parsed
    if name in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UserError(f"a store cannot be kept in `{name}`; {_URLS}")


_URLS = "give sqlite:///FILE, a path, :memory: or postgresql://USER:PASSWORD@HOST/DATABASE"


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds `path`, or None where the disk is local or nobody can tell.

    `mounts`: the text of /proc/mounts.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    real = Path(os.path.realpath(path))
    found, kind = Path(), ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = Path(fields[1].replace("\\040", " "))
        if real.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _sqlite_path(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def _looks_like_rows(path: Path) -> bool:
    return any(end in (".jsonl", ".json", ".csv", ".tsv", ".parquet") for end in map(str.lower, path.suffixes))


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; a store is a file, such as {path / 'feedback.db'}")
    if path.exists():
        if not os.access(path, os.R_OK):
            raise UserError(f"no permission to read {path}; check its owner, or use another store")
        return
    if not create:
        near = sorted(p.name for p in path.parent.glob("*.db"))[:3] if path.parent.is_dir() else []
        there = f"; in that folder there is {', '.join(near)}" if near else ""
        raise UserError(
            f"there is no store at {path}{there}. `rlhf-loop feedback import FILE --store {path}` makes one"
        )
    try:
        if not path.parent.is_dir():
            private.make_folder(path.parent)
        private.make_file(path)  # SQLite gives the files beside it the same permissions
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}; use a folder of yours for the store") from None


def _writable(path: Path) -> bool:
    """Whether SQLite can write a file: its log lies beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _read_only(path: Path) -> str:
    """The URL that opens a file to read alone. Where nothing waits in its log SQLite needs no file beside it, and can
    make none in a folder that cannot be written."""
    log = path.with_name(path.name + "-wal")
    settled = not log.exists() or not log.stat().st_size
    return f"sqlite:///file:{quote(str(path))}?mode=ro{'&immutable=1' if settled else ''}&uri=true"


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


def _holders(path: Path | None) -> str:
    """Which other processes have the file open, as far as /proc tells."""
    if path is None or not Path("/proc/self/fd").is_dir():
        return ""
    real = os.path.realpath(path)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            if any(os.path.realpath(fd) == real for fd in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(f"process {process.name}: {command[:80]}")
        except OSError:
            continue
    return f" ({'; '.join(found[:3])})" if found else ""
