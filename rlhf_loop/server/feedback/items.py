"""From what an application sends to the store's feedback: who says it, about what, and what it takes the place of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.table_rows import AnyFeedback, pair_key
from rlhf_loop.records import (
    Annotator,
    Critique,
    Edit,
    Implicit,
    Preference,
    Rating,
    Retraction,
    Span,
    Thumb,
    event_id,
    stable_id,
)
from rlhf_loop.server.chat.answers import choice_id
from rlhf_loop.server.service import Service
from rlhf_loop.server.types import Number, Whole

Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]

_EXPLICIT = ("thumb", "rating", "preference", "comment", "edit", "tags")


class RatingGiven(BaseModel):
    """A score on a scale."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    score: Number
    scale: tuple[Number, Number] = (1.0, 5.0)

    @model_validator(mode="after")
    def _on_the_scale(self) -> RatingGiven:
        low, high = self.scale
        if not low < high:
            raise ValueError("the scale must go from its lower to its higher end")
        if not low <= self.score <= high:
            raise ValueError(f"the score must lie on the scale, {low:g} to {high:g}")
        return self


class PreferenceGiven(BaseModel):
    """Which of two answers to the same conversation is better."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    other_id: Id = Field(description="the response that this one is compared with; the same for two of its choices")
    other_choice: Whole = Field(0, ge=0, le=7)
    winner: Literal["this", "other", "tie", "both_bad"] = "this"
    strength: Number | None = Field(None, ge=0, le=1, description="how clearly")


class Item(BaseModel):
    """What a user says of an answer, or does with it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    response_id: Id = Field(description="the `id` of a chat completion")
    choice: Whole = Field(0, ge=0, le=7, description="which of its choices")
    thumb: Literal["up", "down", "none"] | None = Field(None, description="`none` takes an earlier one back")
    rating: RatingGiven | None = None
    preference: PreferenceGiven | None = None
    comment: Text | None = Field(None, description="a critique, in the user's words")
    edit: Text | None = Field(None, description="the answer as it should have been")
    tags: list[Tag] | None = Field(None, min_length=1, max_length=20, description="what is wrong, in the app's words")
    event: Literal["copy", "regenerate", "edit"] | None = Field(
        None, description="what the user did rather than said; counts only where the recipe says so"
    )
    user: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="the application's name for its user; whose conversation it was, where it is left out"
    )
    lead_time: Number | None = Field(None, ge=0, le=86400, description="seconds that the user took")

    @model_validator(mode="after")
    def _says_something(self) -> Item:
        if self.event is None and all(getattr(self, name) is None for name in _EXPLICIT):
            raise ValueError(f"says nothing: give at least one of {', '.join(_EXPLICIT)}, event")
        return self


class Refused(Exception):
    """An item that cannot be stored: which field is wrong, and how."""

    def __init__(self, status: int, param: str, message: str):
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> dict[str, Any]:
        """In the words of OpenAI's API."""
        return {"message": f"{self.param}: {self}", "type": "invalid_request", "param": self.param}


@dataclass(frozen=True, kw_only=True, slots=True)
class What:
    """The records that an item becomes, and whose they are."""

    records: list[AnyFeedback]
    user: str | None  # the key of the user who said it, where the application said who

    def summary(self, dry_run: bool) -> list[dict[str, str | None]]:
        """What the application is told of them."""
        return [{"id": None if dry_run else record.id, "kind": record.kind} for record in self.records]


def records_of(service: Service, transaction: Transaction, item: Item, user: str | None, round: int) -> What:
    """The feedback that an item is, in this round (`service.round`), by the user with this key (None: who asked).

    Raises `Refused` where an answer is not there, or two answer different prompts.
    """
    connection = transaction.connection
    answer = _answer(connection, item.response_id, item.choice, "response_id")
    user = user or connection.scalar(_WHOSE, {"id": answer.id})
    who = user or f"anonymous-{stable_id(answer.prompt_id)[:12]}"
    common: dict[str, Any] = {
        "prompt_id": answer.prompt_id,
        "annotator": Annotator(id=who),
        "created_at": time.time(),
        "round": round,
        "lead_time": item.lead_time,
        "source": "app",
    }
    about: dict[str, Any] = {"completion_id": answer.id}
    comment = service.redact(item.comment) if item.comment is not None else None
    records: list[AnyFeedback] = []

    def add(kind: Any, **values: Any) -> None:
        """A record; the first one that can carry the comment does."""
        nonlocal comment
        earlier = _earlier(connection, who, kind, values)
        records.append(kind(id=event_id(), supersedes=earlier, comment=comment, **values, **common))
        comment = None

    if item.preference is not None:
        given = item.preference
        other = _answer(connection, given.other_id, given.other_choice, "preference.other_id")
        if other.id == answer.id:
            raise Refused(422, "preference.other_id", "an answer cannot be compared with itself")
        if other.prompt_id != answer.prompt_id:
            raise Refused(422, "preference.other_id", "the two answers are not to the same conversation")
        winner = {"this": "a", "other": "b"}.get(given.winner, given.winner)
        pair = {"a_id": answer.id, "b_id": other.id}
        add(Preference, **pair, winner=winner, strength=given.strength, blind=False)
    if item.thumb is not None and item.thumb != "none":
        add(Thumb, label=item.thumb == "up", **about)
    elif item.thumb == "none" and (earlier := _earlier(connection, who, Thumb, about)) is not None:
        records.append(Retraction(id=event_id(), supersedes=earlier, **common))
    if item.rating is not None:
        add(Rating, score=item.rating.score, scale=item.rating.scale, **about)
    if item.tags is not None:
        whole = tuple(Span(start=0, end=len(answer.text), label=service.redact(tag)) for tag in item.tags)
        add(Critique, spans=whole, **about)
    if item.edit is not None:
        add(Edit, edited_completion=service.redact(item.edit), **about)
    if comment is not None:
        add(Critique, **about)
    if item.event is not None:
        records.append(Implicit(id=event_id(), action=item.event, **about, **common))
    return What(records=records, user=user)


def store_said(transaction: Transaction, said: Sequence[What]) -> None:
    """Stores feedback, and whose it is."""
    records = [record for what in said for record in what.records]
    transaction.add_new_feedback(records)
    theirs = [
        {"user": what.user, "kind": "feedback", "record_id": record.id}
        for what in said
        if what.user is not None
        for record in what.records
    ]
    if theirs:
        transaction.connection.execute(_REMEMBER, theirs)


def _answer(connection: sa.Connection, response_id: str, choice: int, param: str) -> Any:
    """The row of an answer: its id, prompt and text."""
    id = choice_id(response_id, choice)
    row = connection.execute(_ANSWER, {"id": id}).first() if "\0" not in id else None  # PostgreSQL knows no NUL
    if row is None:
        which = f" has no choice {choice}, or" if choice else ""
        said = f"the response `{response_id[:100]}`{which} is not there; give the `id` of an answer"
        raise Refused(404, param, said)
    return row


def _earlier(connection: sa.Connection, who: str, kind: Any, values: dict[str, Any]) -> str | None:
    """What the same person said before in the same way of the same thing, which the new record takes the place of.

    Critiques and what users do add up; they take the place of nothing.
    """
    if kind in (Critique, Implicit):
        return None
    name = kind.__dataclass_fields__["kind"].default
    if kind is Preference:
        statement, about = _SAID_OF_PAIR, pair_key(values["a_id"], values["b_id"])
    else:
        statement, about = _SAID_OF_ANSWER, values["completion_id"]
    earlier: str | None = connection.scalar(statement, {"about": about, "kind": name, "who": who})
    return earlier


def _said_of(column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """The last thing that a person said in one way of what `column` names, where nothing superseded it."""
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
