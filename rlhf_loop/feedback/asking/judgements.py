"""What a person says of a card, and the records that this becomes: a verdict, critiques and edits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_loop.errors import UserError
from rlhf_loop.records import (
    Annotator,
    Completion,
    Critique,
    Edit,
    Feedback,
    Preference,
    Question,
    Retraction,
    Skip,
    Span,
    event_id,
    stable_id,
)

SOURCE = "annotation"
"""What feedback from here has as `source`; its `external_id` is the question's id."""

STRENGTHS = {"slightly": 0.5, "clearly": 1.0}
"""How clearly an answer is preferred, as the strength of a preference."""

_FURTHER = ("critique-a", "critique-b", "edit-a", "edit-b")
"""What can come with a verdict; each has an id made of the verdict's."""

Verdict = Literal["first", "second", "tie", "both_bad", "skip"]

Order = Literal["ab", "ba"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Remarks:
    """What a person says of one answer."""

    comment: str = ""
    tags: tuple[str, ...] = ()  # of the whole answer
    spans: tuple[Span, ...] = ()
    edit: str | None = None  # the answer as they would have it; None: as it is


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a person submits about a card, in the order in which they saw the answers."""

    submission: str  # the page's id of it
    question_id: str
    verdict: Verdict
    strength: Literal["slightly", "clearly"] | None = None
    remarks: tuple[Remarks, Remarks] = field(default_factory=lambda: (Remarks(), Remarks()))
    visible_seconds: float | None = None  # how long the card was in sight


def shown_order(who: str, question: Question) -> Order:
    """Which answer `who` sees first: a coin's throw that always falls the same way."""
    return "ab" if int(stable_id("shown order", who, question.id), 16) % 2 else "ba"


def records_of_judgement(
    who: str,
    judgement: Judgement,
    question: Question,
    completions: Mapping[str, Completion],
    verdict_id: str,
    round: int,
    lease: tuple[float, float] | None,
) -> list[Feedback]:
    """The verdict first, then critiques and edits."""
    order = shown_order(who, question)
    remarks = dict(zip(order, judgement.remarks, strict=True))
    ids = {"a": question.a_id, "b": question.b_id}
    now = time.time()
    common: dict[str, Any] = {
        "prompt_id": question.prompt_id,
        "annotator": Annotator(id=who),
        "created_at": now,
        "round": round,
        "source": SOURCE,
        "external_id": question.id,
    }
    pair: dict[str, Any] = {"a_id": ids["a"], "b_id": ids["b"], "lead_time": _lead_time(judgement, lease, now)}
    records: list[Feedback] = []
    if judgement.verdict == "skip":
        records.append(Skip(id=verdict_id, **pair, **common))
    else:
        winner = _winner(judgement.verdict, order)
        loser = {"a": "b", "b": "a"}.get(winner)
        records.append(
            Preference(
                id=verdict_id,
                winner=winner,
                strength=STRENGTHS[judgement.strength] if judgement.strength and loser else None,
                shown_order=order,
                comment=(remarks[loser].comment.strip() or None) if loser else None,  # goes along with the pair
                **pair,
                **common,
            )
        )
    further = dict(zip(_FURTHER, further_ids(verdict_id), strict=True))
    for side in ("a", "b"):
        said, completion = remarks[side], completions[ids[side]]
        spans = (*said.spans, *(Span(start=0, end=len(completion.text), label=tag) for tag in said.tags))
        _check_spans(said.spans, completion, "A" if side == order[0] else "B")
        about = {"completion_id": completion.id, **common}
        if said.comment.strip() or spans:
            comment = said.comment.strip() or None
            records.append(Critique(id=further[f"critique-{side}"], comment=comment, spans=spans, **about))
        if said.edit is not None and said.edit.strip() and said.edit.strip() != completion.text.strip():
            records.append(Edit(id=further[f"edit-{side}"], edited_completion=said.edit, **about))
    return records


def _winner(verdict: Verdict, order: Order) -> Literal["a", "b", "tie", "both_bad"]:
    sides: dict[str, Literal["a", "b"]] = (
        {"first": "a", "second": "b"} if order == "ab" else {"first": "b", "second": "a"}
    )
    return "tie" if verdict == "tie" else "both_bad" if verdict == "both_bad" else sides[verdict]


def _lead_time(judgement: Judgement, lease: tuple[float, float] | None, now: float) -> float | None:
    """Seconds: how long the card was in sight, but no longer than it was held; None where nobody knows."""
    held = None if lease is None else now - lease[0]
    known = [seconds for seconds in (judgement.visible_seconds, held) if seconds is not None]
    return round(max(0.0, min(known)), 2) if known else None


def _check_spans(spans: Iterable[Span], completion: Completion, shown_as: str) -> None:
    for span in spans:
        if not 0 <= span.start < span.end <= len(completion.text):
            raise UserError(
                f"a marked passage ({span.start} to {span.end}) is not inside answer {shown_as}, which has "
                f"{len(completion.text)} characters; mark it again"
            )


def retraction(record: Feedback, round: int) -> Retraction:
    """Takes `record` back."""
    return Retraction(
        id=event_id(),
        prompt_id=record.prompt_id,
        annotator=record.annotator,
        created_at=time.time(),
        round=max(round, record.round),
        source=SOURCE,
        supersedes=record.id,
    )


def further_ids(verdict_id: str) -> list[str]:
    """Ids of what may have come with a verdict."""
    return [stable_id(verdict_id, part) for part in _FURTHER]
