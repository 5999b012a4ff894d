"""What is written of a store: the URL or path that names it, its project, and its passwords."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf_loop.errors import UserError

SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?")
"""The URL of an SQLite file: what stands before its path, its path, what stands behind."""
_OF_FILE = re.compile(r"(.*?)(\?project=[^?]*)?", re.DOTALL)  # a path, and the project of the store in that file


def sqlite_file(store: str) -> Path | None:
    """The file of an SQLite store by its URL or path; None of others."""
    file = SQLITE_FILE.fullmatch(store)
    path = file[2] if file else split_project(store)[0]
    return Path(path) if os.path.isabs(path) else None


DEFAULT_PROJECT = "default"
"""What the project is called that a store has from the beginning: where no other is named."""

_PROJECT = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,38}[a-z0-9])?")
_RESERVED = re.compile(r"public|information_schema|pg_.*")  # PostgreSQL's own schemas, which people may take it for


def project_name(text: str) -> str | None:
    """A project's name as it is kept, in small letters; None for the project that a store has from the beginning.

    Raises `UserError` for what is none: 1 to 40 letters of a to z, digits, and - or _ within.
    """
    name = text.lower()
    if name == DEFAULT_PROJECT:
        return None
    if not _PROJECT.fullmatch(name):
        raise UserError(
            f"{text[:80]!r} is no name of a project: give 1 to 40 of the letters a to z, digits, - and _, with a "
            "letter or a digit at both ends"
        )
    if _RESERVED.fullmatch(name):
        raise UserError(f"a project cannot be called {name}, as PostgreSQL has a schema of that name; choose another")
    return name


def is_project_name(text: str) -> bool:
    """Whether a text is written as a project's name is; else it is the URL or path of a store."""
    return _PROJECT.fullmatch(text.lower()) is not None


def names_project(store: str) -> bool:
    """Whether the URL or path of a store names a project."""
    return re.search(r"\?(?:.*&)?project=", store) is not None


def split_project(path: str) -> tuple[str, str]:
    """The path of a store's file, and what follows it: `?project=NAME`, or nothing."""
    found = _OF_FILE.fullmatch(path)
    assert found is not None  # it matches any text
    return found[1], found[2] or ""


def in_project(store: str, project: str | None) -> str:
    """The URL or path of a store, which names no project, with this one."""
    if project is None:
        return store
    return f"{store}{'&' if '?' in store and '://' in store else '?'}project={project}"


SECRET_KEYS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Settings of a PostgreSQL URL that are nobody else's."""


def without_password(store: str) -> str:
    """The URL or path of a store without a password: neither before its host nor in its query."""
    url = re.sub(r"(://[^:/]*):[^@]*@", r"\1@", store)
    return re.sub(rf"([?&])(?:{'|'.join(SECRET_KEYS)})=[^&]*&?", r"\1", url).rstrip("?&") if "://" in url else url
