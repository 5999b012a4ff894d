"""What endpoints answered, by content, and what was spent on it: one SQLite file in a run's folder.

Each answer is there before the next is waited for, so a process that is killed asks nothing twice. Several processes
may use the file at once. It holds answers and hashes of what was asked, not the texts that were sent.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from rlhf_loop.errors import UserError
from rlhf_loop.files import explain_os_error, private
from rlhf_loop.machine import network_file_system

FILE = "endpoints.db"
"""Its name in a run's folder."""

BUSY_SECONDS = 60.0
"""How long to wait for another process that is writing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One answer of a server."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None  # None: the server does not say
    completion_tokens: int | None = None
    created_at: float = 0.0  # seconds since the epoch
    top_logprobs: tuple[tuple[tuple[str, float], ...], ...] = ()  # of each token, where they were asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What was asked of one endpoint so far, in all rounds of a run."""

    requests: int = 0  # sent, retries included
    answers: int = 0  # that came and are kept
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0  # questions that were answered from the file
    failures: int = 0  # questions that got no answer
    unreadable: int = 0  # answers that were none of the wanted form
    without_usage: int = 0  # answers of which the server did not say how long they were

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens


class Answers:
    """The open file; `path` None: in memory, for as long as this object lives."""

    def __init__(self, path: Path | None):
        """Makes the file where there is none. Raises `UserError` where that is not possible."""
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                private.make_file(path)  # SQLite gives the files beside it the same permissions
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # The write-ahead log needs memory that all users of the file share.
            log = path is not None and network_file_system(path) is None
            self._execute(f"PRAGMA journal_mode = {'WAL' if log else 'DELETE'}")
            self._execute(f"PRAGMA synchronous = {'NORMAL' if log else 'FULL'}")
            for statement in _TABLES:
                self._execute(statement)
        except OSError as error:
            raise explain_os_error(error, path or Path(FILE)) from error

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def find(self, key: str) -> Reply | None:
        """The answer to what `key` is the hash of."""
        row = self._execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else _reply(row[0])

    def may_ask(self, endpoint: str, limit: int | None) -> bool:
        """Counts a request that is about to be sent; False, and nothing is counted, where `limit` of them were sent."""
        with self._transaction():
            if limit is not None and self.spent(endpoint).requests >= limit:
                return False
            self._add(endpoint, requests=1)
        return True

    def hold(self, endpoint: str, tokens: int, limit: int, seconds: float) -> int | Literal["wait", "spent"]:
        """Holds `tokens` of a budget of `limit` for a request that is about to be sent; its number, for `let_go`.

        `wait`: what other requests on their way hold leaves too little; `spent`: nothing else is held, and it still is
        too little. What a process held that died counts no more after `seconds`."""
        now = time.time()
        with self._transaction():
            self._execute("DELETE FROM held WHERE until < ?", (now,))
            of_others = self._execute("SELECT sum(tokens) FROM held WHERE endpoint = ?", (endpoint,)).fetchone()[0] or 0
            if self.spent(endpoint).tokens + of_others + tokens > limit:
                return "wait" if of_others else "spent"
            values = (endpoint, tokens, now + seconds)
            number = self._execute("INSERT INTO held (endpoint, tokens, until) VALUES (?, ?, ?)", values).lastrowid
        assert number is not None
        return number

    def let_go(self, number: int) -> None:
        """Ends what `hold` gave; what the request took is counted by `keep` before."""
        self._execute("DELETE FROM held WHERE number = ?", (number,))

    def keep(self, key: str, endpoint: str, reply: Reply, about: Sequence[str] = ()) -> Reply:
        """Stores an answer and what it cost; gives the one that is kept: the first, where two processes asked the same.

        `about`: ids of the prompts and completions that it speaks of, by which a deletion finds it."""
        body = json.dumps(asdict(reply), ensure_ascii=False)
        known = reply.prompt_tokens is not None and reply.completion_tokens is not None
        with self._transaction():
            self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, endpoint, json.dumps(about), body))
            self._add(
                endpoint,
                answers=1,
                prompt_tokens=reply.prompt_tokens or 0,
                completion_tokens=reply.completion_tokens or 0,
                without_usage=int(not known),
            )
        return self.find(key) or reply

    def count(self, endpoint: str, **numbers: int) -> None:
        """Adds to what `Spent` counts."""
        if any(numbers.values()):
            with self._transaction():
                self._add(endpoint, **numbers)

    def spent(self, endpoint: str) -> Spent:
        """What was spent on one endpoint."""
        return self.all_spent().get(endpoint, Spent())

    def all_spent(self) -> dict[str, Spent]:
        """The same by endpoint."""
        return _spent(self._execute(_ALL_SPENT))

    def forget(self, leaves: Callable[[Iterable[str], str], bool]) -> int:
        """Takes out the answers for which `leaves(ids that it speaks of, its text)` holds, and gives how many."""
        rows = self._execute("SELECT key, about, reply FROM answers").fetchall()
        gone = [(key,) for key, about, reply in rows if leaves(json.loads(about), _reply(reply).text)]
        if gone:
            self._execute("PRAGMA secure_delete = ON")
            with self._transaction():
                self._connection.executemany("DELETE FROM answers WHERE key = ?", gone)
            self._execute("VACUUM")
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(gone)

    def _add(self, endpoint: str, **numbers: int) -> None:
        self._execute("INSERT OR IGNORE INTO spent (endpoint) VALUES (?)", (endpoint,))
        added = ", ".join(f"{name} = {name} + ?" for name in numbers)
        self._execute(f"UPDATE spent SET {added} WHERE endpoint = ?", (*numbers.values(), endpoint))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._execute("COMMIT")

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise _damaged(self.path, error) from error


def spent_in(run: Path) -> dict[str, dict[str, int]]:
    """What a run spent by endpoint, plain values for JSON; empty where nothing was asked."""
    path = run / FILE
    if not path.exists():
        return {}
    # A log beside it is read too, which needs a file that SQLite cannot make where the folder cannot be written.
    readable = os.access(run, os.W_OK) and path.with_name(f"{FILE}-wal").exists()
    mode = "mode=ro" if readable else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?{mode}", uri=True)) as connection:
            return {name: asdict(spent) for name, spent in _spent(connection.execute(_ALL_SPENT)).items()}
    except sqlite3.Error as error:
        raise _damaged(path, error) from error


_COUNTS = tuple(Spent.__dataclass_fields__)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, about TEXT NOT NULL, "
    "reply TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (endpoint TEXT PRIMARY KEY, "
    + ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in _COUNTS)
    + ")",
    "CREATE TABLE IF NOT EXISTS held (number INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, tokens INTEGER NOT NULL, "
    "until REAL NOT NULL)",
)

_ALL_SPENT = f"SELECT endpoint, {', '.join(_COUNTS)} FROM spent ORDER BY endpoint"


def _spent(rows: Iterable[Sequence[Any]]) -> dict[str, Spent]:
    return {name: Spent(**dict(zip(_COUNTS, numbers, strict=True))) for name, *numbers in rows}


def _damaged(path: Path | None, error: sqlite3.Error) -> UserError:
    return UserError(
        f"{path} cannot be read or written: {error}. Free some space or make it writable and type the same command "
        "again; a damaged file can be deleted, and what it held is then asked again"
    )


def _reply(body: str) -> Reply:
    values = json.loads(body)
    tokens = tuple(tuple((str(t), float(p)) for t, p in token) for token in values.pop("top_logprobs"))
    return Reply(**values, top_logprobs=tokens)
