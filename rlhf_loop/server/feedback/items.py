"""What an application sends, and the feedback that it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rlhf_loop.feedback.asking.answers import Answer, ItemRecords, find_answer
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.records import Critique, Edit, Implicit, Preference, Rating, Span, Thumb
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


class ItemRefused(Exception):
    """An item that cannot be stored: which field is wrong, and how."""

    def __init__(self, status: int, param: str, message: str):
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> dict[str, Any]:
        """In the words of OpenAI's API."""
        return {"message": f"{self.param}: {self}", "type": "invalid_request", "param": self.param}


def records_of(
    service: Service, transaction: Transaction, item: Item, user: str | None, last_round: int
) -> ItemRecords:
    """The feedback that an item is, by the user with this key (None: who asked).

    `last_round`: the last one whose snapshot is taken (`service.round`). Raises `ItemRefused` where an answer is not
    there, or two answer different prompts.
    """
    answer = _answer(transaction, item.response_id, item.choice, "response_id")
    found = ItemRecords(transaction, answer, user, round=last_round, lead_time=item.lead_time)
    about: dict[str, Any] = {"completion_id": answer.id}
    comment = service.redact(item.comment) if item.comment is not None else None

    def add(kind: Any, **values: Any) -> None:
        """A record; the first one that can carry the comment does."""
        nonlocal comment
        found.add(kind, comment=comment, **values)
        comment = None

    if item.preference is not None:
        given = item.preference
        other = _answer(transaction, given.other_id, given.other_choice, "preference.other_id")
        if other.id == answer.id:
            raise ItemRefused(422, "preference.other_id", "an answer cannot be compared with itself")
        if other.prompt_id != answer.prompt_id:
            raise ItemRefused(422, "preference.other_id", "the two answers are not to the same conversation")
        winner = {"this": "a", "other": "b"}.get(given.winner, given.winner)
        pair = {"a_id": answer.id, "b_id": other.id}
        add(Preference, **pair, winner=winner, strength=given.strength, blind=False)
    if item.thumb == "none":
        found.take_back(Thumb, **about)
    elif item.thumb is not None:
        add(Thumb, label=item.thumb == "up", **about)
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
        found.add(Implicit, action=item.event, **about)
    return found


def _answer(transaction: Transaction, response_id: str, choice: int, param: str) -> Answer:
    found = find_answer(transaction, choice_id(response_id, choice))
    if found is None:
        which = f" has no choice {choice}, or" if choice else ""
        message = f"the response `{response_id[:100]}`{which} is not there; give the `id` of an answer"
        raise ItemRefused(404, param, message)
    return found
