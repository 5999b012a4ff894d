"""What keeps a database from being used, and what to do about it: its errors in words."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from rlhf_loop.errors import StoreUnavailable, UserError

_SHARED_MEMORY = 2**16  # bytes free below which SQLite's shared memory does not fit


def explain_sqlite(error: DBAPIError, name: str, path: Path | None, busy_seconds: float) -> UserError | None:
    """What keeps the store from being used; None for an error of ours, such as in a query.

    `path`: of its file, if it has one. `busy_seconds`: how long it was waited for others.
    """
    text = str(error.orig).strip()
    if isinstance(error, DataError):
        return _not_storable(name, text)
    reason = getattr(error.orig, "sqlite_errorname", "")
    if reason.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreUnavailable(
            f"{name} is locked by another process{holders(path)}, and stayed so for {busy_seconds:g} seconds. Wait "
            "until it is done or stop it, then type the same command again; for many writers at once use PostgreSQL "
            "(`store: postgresql://...`)"
        )
    if reason == "SQLITE_NOTADB" and path is not None and _looks_like_rows(path):
        return UserError(
            f"{name} is no store but a file of rows; `rlhf-loop feedback import {name} --store "
            f"{path.with_suffix('.db')}` puts them into one"
        )
    if reason.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StoreUnavailable(
            f"{name} is damaged or not a SQLite database ({text}). Move it away and restore a copy, or make a "
            f"new store and import an export into it; `sqlite3 {name} .recover` may save what is left"
        )
    if reason.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return not_writable(name, text)
    if reason.startswith("SQLITE_FULL") or (reason.startswith("SQLITE_IOERR") and _disk_is_full(path)):
        return StoreUnavailable(
            f"the disk is full while writing {name}. What was saved before is safe: free some space and type "
            "the same command again"
        )
    if reason.startswith(("SQLITE_IOERR", "SQLITE_PROTOCOL", "SQLITE_NOMEM", "SQLITE_NOLFS")):
        return StoreUnavailable(f"{name}: {text}")
    return None


def explain_postgres(error: DBAPIError, name: str) -> UserError | None:
    """What keeps the store from being used; None for an error of ours, such as in a query."""
    text = str(error.orig).strip()
    if isinstance(error, DataError):
        return _not_storable(name, text)
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return StoreUnavailable(
            f"the PostgreSQL server of {name} cannot be reached or refused: {text.splitlines()[0]}. Check "
            "that it runs and that host, port, user, password and database in the URL are right"
        )
    state = getattr(error.orig, "sqlstate", None)
    if state == "42501":  # insufficient privilege
        return StoreUnavailable(f"{name}: {text}. The user in the URL needs the right to create and fill tables")
    if state == "25006":  # read-only transaction: a standby
        return StoreUnavailable(f"{name}: {text}. Give the URL of a server that can be written")
    return None


def not_writable(name: str, why: str) -> StoreUnavailable:
    """The error of a file that may only be read."""
    return StoreUnavailable(
        f"{name} cannot be written ({why}): the file or its folder can only be read by you. Check the "
        "permissions of both, and whether their disk is mounted read-only, then type the same command again"
    )


def holders(path: Path | None) -> str:
    """Which other processes have the file open, in brackets, as far as /proc tells."""
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


def _not_storable(name: str, text: str) -> UserError:
    return UserError(f"{name}: a value cannot be stored ({text.splitlines()[0]})")


def _looks_like_rows(path: Path) -> bool:
    return any(end in (".jsonl", ".json", ".csv", ".tsv", ".parquet") for end in map(str.lower, path.suffixes))


def _disk_is_full(path: Path | None) -> bool:
    """SQLite calls it an I/O error where the memory that its users share does not fit on the disk."""
    return path is not None and shutil.disk_usage(path.parent).free < _SHARED_MEMORY
