"""What users of applications say of answers, as feedback: who says it, and what it takes the place of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.table_rows import pair_key
from rlhf_loop.records import Annotator, Critique, Feedback, Implicit, Preference, Retraction, event_id, stable_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What feedback on an answer has to know of it."""

    id: str
    prompt_id: str
    text: str


def find_answer(transaction: Transaction, completion_id: str) -> Answer | None:
    """The answer with this id, if it is there."""
    if "\0" in completion_id:  # PostgreSQL knows no NUL
        return None
    row = transaction.connection.execute(_ANSWER, {"id": completion_id}).first()
    return None if row is None else Answer(id=row.id, prompt_id=row.prompt_id, text=row.text)


class ItemRecords:
    """The records that become of what one user says of one answer at one time."""

    def __init__(
        self, transaction: Transaction, answer: Answer, user: str | None, *, round: int, lead_time: float | None
    ):
        """`user`: the key of who says it; None: whoever asked, or else somebody without a name.

        `round`: the one whose snapshot is the last that was taken. `lead_time`: seconds that the user took.
        """
        self._connection = transaction.connection
        self.user: str | None = user or self._connection.scalar(_WHOSE, {"id": answer.id})
        self.records: list[Feedback] = []
        self._who = self.user or f"anonymous-{stable_id(answer.prompt_id)[:12]}"
        self._common: dict[str, Any] = {
            "prompt_id": answer.prompt_id,
            "annotator": Annotator(id=self._who),
            "created_at": time.time(),
            "round": round,
            "lead_time": lead_time,
            "source": "app",
        }

    def add(self, kind: Any, **values: Any) -> None:
        """A record of this kind, in the place of what the same user said before in the same way of the same thing."""
        earlier = self._earlier(kind, values)
        self.records.append(kind(id=event_id(), supersedes=earlier, **values, **self._common))

    def take_back(self, kind: Any, **about: Any) -> None:
        """Takes back what the same user said before in this way, if they did."""
        earlier = self._earlier(kind, about)
        if earlier is not None:
            self.records.append(Retraction(id=event_id(), supersedes=earlier, **self._common))

    def summary(self, dry_run: bool) -> list[dict[str, str | None]]:
        """What the application is told of them."""
        return [{"id": None if dry_run else record.id, "kind": record.kind} for record in self.records]

    def _earlier(self, kind: Any, values: dict[str, Any]) -> str | None:
        """The id of what the new record takes the place of. Critiques and what users do add up."""
        if kind in (Critique, Implicit):
            return None
        name = kind.__dataclass_fields__["kind"].default
        if kind is Preference:
            statement, about = _SAID_OF_PAIR, pair_key(values["a_id"], values["b_id"])
        else:
            statement, about = _SAID_OF_ANSWER, values["completion_id"]
        earlier: str | None = self._connection.scalar(statement, {"about": about, "kind": name, "who": self._who})
        return earlier


def keep(transaction: Transaction, items: Iterable[ItemRecords]) -> None:
    """Stores feedback, and whose it is."""
    items = list(items)
    transaction.add_new_feedback([record for item in items for record in item.records])
    theirs = [
        {"user": item.user, "kind": "feedback", "record_id": record.id}
        for item in items
        if item.user is not None
        for record in item.records
    ]
    if theirs:
        transaction.connection.execute(_REMEMBER, theirs)


def _said_of(column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """The last thing that a person said in one way of what `column` names, where it is in force."""
    feedback = tables.feedback.c
    same = (column == sa.bindparam("about"), feedback.kind == sa.bindparam("kind"))
    by = feedback.annotator == sa.bindparam("who")
    return sa.select(feedback.id).where(*same, by, in_force()).order_by(feedback.number.desc()).limit(1)


# Made once: making a statement takes longer than running it.
_ANSWER = sa.select(tables.completions.c.id, tables.completions.c.prompt_id, tables.completions.c.text).where(
    tables.completions.c.id == sa.bindparam("id")
)
_WHOSE = (
    sa.select(tables.user_records.c.user)
    .where(tables.user_records.c.record_id == sa.bindparam("id"), tables.user_records.c.kind == "completion")
    .limit(1)
)
_SAID_OF_ANSWER = _said_of(tables.feedback.c.completion_id)
_SAID_OF_PAIR = _said_of(tables.feedback.c.pair)
_REMEMBER = tables.user_records.insert()
