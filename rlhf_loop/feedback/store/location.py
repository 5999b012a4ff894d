"""Where a store lies: its URL, its file, and whether that is on a disk of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from rlhf_loop import private
from rlhf_loop.errors import UserError


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


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite database; None for one in memory, and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def check_file(path: Path, create: bool) -> None:
    """Makes the file where there is none and `create` says so; raises `UserError` where it cannot be read or made."""
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


def is_writable(path: Path) -> bool:
    """Whether SQLite can write a file: its log lies beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def read_only_url(path: Path) -> str:
    """The URL that opens a file to read alone. Where nothing waits in its log SQLite needs no file beside it, and can
    make none in a folder that cannot be written."""
    log = path.with_name(path.name + "-wal")
    settled = not log.exists() or not log.stat().st_size
    return f"sqlite:///file:{quote(str(path))}?mode=ro{'&immutable=1' if settled else ''}&uri=true"
