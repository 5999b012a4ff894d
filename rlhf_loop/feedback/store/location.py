"""Where a store lies: its URL, its file, which of its projects is meant, and whether that is on a disk of this machine.

A project is a store of its own within a store: its tables are in a schema of their own on PostgreSQL, in a file of
their own beside the store's on SQLite. So no query knows of projects.

    postgresql://HOST/DATABASE?project=team-a     schema "project_team-a" of the database
    feedback.db?project=team-a                    file feedback.project-team-a.db
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from rlhf_loop.errors import UserError, shortened
from rlhf_loop.files import explain_os_error, private
from rlhf_loop.files.store_address import DEFAULT_PROJECT, SECRET_KEYS, project_name, split_project
from rlhf_loop.near import did_you_mean, nearest

SCHEMA_PREFIX = "project_"
"""Of the names of projects' schemas on PostgreSQL: no project is taken for a schema of something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a store, or a project of it, lies."""

    database: URL  # without the project
    project: str | None = None  # None: the one that the store has from the beginning

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite; else it is PostgreSQL."""
        return self.database.get_backend_name() == "sqlite"

    @property
    def schema(self) -> str | None:
        """The project's schema on PostgreSQL; None: that of the database."""
        return None if self.project is None or self.is_sqlite else SCHEMA_PREFIX + self.project

    @property
    def url(self) -> URL:
        """For SQLAlchemy: on SQLite that of the project's file."""
        if self.project is None or not self.is_sqlite:
            return self.database
        return self.database.set(database=str(project_file(Path(str(self.database.database)), self.project)))

    @property
    def name(self) -> str:
        """For messages and for `--store`: no password in it."""
        shown = self._with_project.difference_update_query(SECRET_KEYS)
        return str(sqlite_path(self.url) or shown.render_as_string(hide_password=True))

    @property
    def address(self) -> str:
        """What `Store.open` takes, with the password."""
        return self._with_project.render_as_string(hide_password=False)

    @property
    def short_name(self) -> str:
        """The file or the database, without folders, in letters, digits and `. _ -` alone, with the project."""
        url = self.database
        store = Path(str(url.database)).name if self.is_sqlite else f"{url.host or 'local'}-{url.database}"
        return re.sub(r"[^\w.-]", "-", store if self.project is None else f"{store}-{self.project}")

    @property
    def shown_project(self) -> str:
        """The project for messages."""
        return self.project or DEFAULT_PROJECT

    @property
    def _with_project(self) -> URL:
        return self.database if self.project is None else self.database.update_query_dict({"project": self.project})

    def of_project(self, project: str | None) -> Location:
        """Another project of the same store."""
        return Location(database=self.database, project=project)


def locate(store: str | Path) -> Location:
    """Where the store of a URL or path lies, with `?project=NAME` where one is named.

    Raises `UserError` for a URL that is none, a name that is none, settings that there are not (those of PostgreSQL its
    driver knows), and a project of a store in memory.
    """
    path, project = split_project(str(store)) if "://" not in str(store) else (str(store), "")
    url = parse_url(path)
    named = project.removeprefix("?project=") if project else url.query.get("project")
    if _NO_NAME.search(path):  # SQLAlchemy leaves it out, and the wrong project would be taken
        named = ""
    if named is None:
        return Location(database=url)
    if not isinstance(named, str):
        raise UserError(f"`project` stands {len(named)} times in the store's URL; name one project")
    found = Location(database=url.difference_update_query(["project"]), project=project_name(named))
    if found.project is None:
        return found
    if found.is_sqlite and sqlite_path(url) is None:
        raise UserError("a store in memory has no projects; give a file, or a database of a PostgreSQL server")
    if "search_path" in str(url.query.get("options", "")):
        raise UserError(
            "the store's URL names a project and a search_path (`options`), and both say which tables are meant; "
            "leave one of them out"
        )
    return found


def project_file(store: Path, project: str) -> Path:
    """The file of a project of the SQLite store in this file."""
    return store.with_name(f"{store.stem}.project-{project}{store.suffix}")


def projects_beside(store: Path) -> list[str]:
    """The names of the projects of the SQLite store in this file, but for the one that it has from the beginning."""
    start, end, found = f"{store.stem}.project-", store.suffix, []
    for file in store.parent.iterdir() if store.parent.is_dir() else ():
        name = file.name[len(start) : len(file.name) - len(end)]
        if file.name == f"{start}{name}{end}" and _is_name(name):
            found.append(name)
    return sorted(found)


def no_such_project(location: Location, known: list[str]) -> UserError:
    """The error of a project that is not there; `known`: those that are."""
    project, store = location.shown_project, location.of_project(None).name
    there = ", ".join([DEFAULT_PROJECT, *known[:20]]) + (", ..." if len(known) > 20 else "")
    return UserError(
        f"{store} has no project {project}{did_you_mean(project, known)}; there are: {there}. What writes to a "
        "project makes it: `rlhf-loop feedback import`, `rlhf-loop token create`, or a run whose recipe says "
        f"`project: {project}`"
    )


def _is_name(text: str) -> bool:
    try:
        return project_name(text) == text
    except UserError:
        return False


def parse_url(url: str | Path) -> URL:
    """`:memory:`, a path, `sqlite:///FILE` or `postgresql://...` as SQLAlchemy's URL; others are a `UserError`."""
    text = str(url)
    if text == ":memory:":
        return make_url("sqlite://")
    if "://" not in text:
        if (key := _KEY.search(Path(text).name)) is not None:
            refuse_unknown(shortened(text[: text.rindex("?")]), [key[1]], ["project"])
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"the store's URL cannot be read ({error}); {_URLS}") from None
    name = parsed.drivername
    if name == "sqlite":
        if parsed.host:
            shown = parsed.render_as_string()
            raise UserError(f"`{shown}`: a SQLite file takes three slashes, sqlite:///{parsed.host}/...; {_URLS}")
        refuse_unknown(shortened(parsed.database or text), parsed.query, ["project"])
        return parsed
    if name in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UserError(f"a store cannot be kept in `{name}`; {_URLS}")


def refuse_unknown(store: str, keys: Iterable[str], known: Collection[str]) -> None:
    """Raises `UserError` for settings behind the `?` of a store's address that are not among those that it may have.

    `store`: the address for messages, without a password.
    """
    for key in keys:
        if key not in known:
            raise UserError(f"{store}: a store's address has no setting `{key}`{nearest(key, known)}")


_KEY = re.compile(r"\?(\w+)=")  # behind the name of a file, where `?project=NAME` alone may stand
_NO_NAME = re.compile(r"://.*[?&]project=(?:&|$)")
_URLS = "give sqlite:///FILE, a path, :memory: or postgresql://USER:PASSWORD@HOST/DATABASE"


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite database; None for one in memory, and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def check_file(location: Location, create: bool) -> None:
    """Makes the file where there is none and `create` says so; raises `UserError` where it cannot be read or made."""
    path = sqlite_path(location.url)
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; a store is a file, such as {path / 'feedback.db'}")
    if path.exists():
        if not os.access(path, os.R_OK):
            raise UserError(f"no permission to read {path}; check its owner, or use another store")
        return
    home = sqlite_path(location.database)
    if not create and location.project is not None and home is not None:
        known = projects_beside(home)
        if known or home.exists():
            raise no_such_project(location, known)
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
        raise explain_os_error(error, path) from None


def is_writable(path: Path) -> bool:
    """Whether SQLite can write a file: its log lies beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def read_only_url(path: Path) -> str:
    """The URL that opens a file to read alone. Where nothing waits in its log SQLite needs no file beside it, and can
    make none in a folder that cannot be written."""
    log = path.with_name(path.name + "-wal")
    settled = not log.exists() or not log.stat().st_size
    return f"sqlite:///file:{quote(str(path))}?mode=ro{'&immutable=1' if settled else ''}&uri=true"
