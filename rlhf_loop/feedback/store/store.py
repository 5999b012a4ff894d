"""The store: every prompt, completion, piece of feedback, score, artifact and question, and how they hang together.

    with Store.open("feedback.db") as store:
        store.add_prompts(prompts)
        store.add_feedback(feedback)
        pairs = store.feedback(kinds=["preference"])

        with store.transaction() as transaction:  # both or neither
            transaction.add_completions(completions)
            transaction.add_feedback(feedback)

Everything that is added is kept: adding an identical record again changes nothing, adding a different one under the
same id is a `UserError`. Each `add_*` of the store is a transaction of its own (`adding.py` says what each does), and
returns how many records were new. What can be asked stands in `reading.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.keys import signing_key
from rlhf_loop.feedback.store.reading import Reading
from rlhf_loop.feedback.store.upgrade import upgrade
from rlhf_loop.records import Artifact, Completion, Feedback, Prompt, Question, Score


class Store(Reading):
    """What the loop remembers, in SQLite or PostgreSQL. Usable from several threads and processes at once."""

    def __init__(self, database: Database, *, is_new: bool = False):
        self.database = database
        self.is_new = is_new  # whether it was made when it was opened

    @classmethod
    def open(cls, url: str | Path, *, create: bool = True, busy_seconds: float = 30.0) -> Store:
        """Opens a store and brings its schema up to date.

        `url`: `:memory:`, a path, `sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/DATABASE`; of a project of the
        store with `?project=NAME` behind it.
        `create=False`: a SQLite file, or a project, that is not there is an error. `busy_seconds`: how long to
        wait for others.
        Raises `UserError` for whatever keeps it from being opened: no permission, a damaged file, a lock that stays,
        a missing driver, a server that cannot be reached, a schema newer than this code.
        """
        database = Database(url, busy_seconds, create)
        try:
            is_new = upgrade(database, create)
        except BaseException:
            database.close()
            raise
        database.tighten()
        return cls(database, is_new=is_new)

    @classmethod
    def open_to_read(cls, url: str | Path) -> Store:
        """Opens a store of others, of which nothing is changed: neither its schema nor who may read its file.

        Raises `UserError` as `open` does, and for a store of an earlier schema.
        """
        database = Database(url, create=False, only_read=True)
        try:
            upgrade(database, create=False)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The store for messages: no password in it."""
        return self.database.name

    @cached_property
    def pseudonym_key(self) -> bytes:
        """What makes the names of applications' users into pseudonyms; not to be asked for within a transaction."""
        return signing_key(self.database, "user_key")

    def is_usable(self) -> bool:
        """Whether the store answers now."""
        try:
            with self.database.read() as connection:
                return connection.scalar(sa.select(1)) == 1
        except UserError:
            return False

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """What is added in it is kept at its end, or undone when an exception leaves it. Nobody else writes then."""
        with self.database.write() as connection:
            yield Transaction(connection, self.name)

    @contextmanager
    def dry_run(self) -> Iterator[Transaction]:
        """One state of the store, to see what would be added to it; nothing may be."""
        with self.database.read() as connection:
            yield Transaction(connection, self.name)

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        return self.database.read()

    # -- transactions of one addition each; `adding.Transaction` says what each does ---------------------------------

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Adds prompts. One that differs only in the file it came from is the same prompt."""
        with self.transaction() as transaction:
            return transaction.add_prompts(prompts)

    def add_completions(self, completions: Iterable[Completion]) -> int:
        """Adds completions; their prompts must be there."""
        with self.transaction() as transaction:
            return transaction.add_completions(completions)

    def add_feedback(self, feedback: Iterable[Feedback]) -> int:
        """Adds feedback; a preference also answers the queued questions about its pair."""
        with self.transaction() as transaction:
            return transaction.add_feedback(feedback)

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Adds scores, one for each completion and reward model; their completions must be there."""
        with self.transaction() as transaction:
            return transaction.add_scores(scores)

    def add_artifact(self, artifact: Artifact) -> int:
        """Adds a policy or reward model, or brings up to date where it lies and how it measured."""
        with self.transaction() as transaction:
            return transaction.add_artifact(artifact)

    def promote(self, artifact_id: str) -> bool:
        """Makes a policy the promoted one; the one before stays in `promotions`. False when it was it already."""
        with self.transaction() as transaction:
            return transaction.promote(artifact_id)

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Queues pairs to be judged; one whose pair `overlap` people have already judged counts as answered."""
        with self.transaction() as transaction:
            return transaction.add_questions(questions)

    def quarantine(self, refused: Iterable[Refused]) -> int:
        """Keeps rows that were refused, with file, line, reason and raw text, so that they can be mended."""
        with self.transaction() as transaction:
            return transaction.quarantine(refused)

    def quarantine_feedback(self, refused: Iterable[tuple[Feedback, str, int]]) -> int:
        """Notes feedback that failed validation: the record, why, and before which round. It stays in the store."""
        with self.transaction() as transaction:
            return transaction.quarantine_feedback(refused)
