"""Where did my feedback go: from a piece of feedback, a person, a model or an answer to what was learned from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import holds
from rlhf_loop.feedback.store.trained_on import feedback_of, models_of, times_used

LISTED = 20
"""How many pieces of feedback are listed: the newest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A model that was trained on feedback."""

    id: str
    kind: str  # policy, reward_model, judge
    round: int
    pieces: int  # of the feedback asked about
    promoted: bool  # whether it is, or ever was, the promoted policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A piece of feedback and what became of it."""

    id: str
    kind: str
    annotator: str
    created_at: float  # seconds since the epoch
    round: int
    prompt_id: str
    said: str  # in a few words
    state: str  # in words: used, waiting, or why not
    used: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What is known of something that was asked about."""

    what: Literal["feedback", "annotator", "artifact", "completion"]
    id: str
    total: int  # pieces of feedback
    kinds: dict[str, int]
    uses: list[Use] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)  # the newest


def trace(store: Store, id: str, round: int, user: str | None = None) -> Trace | None:
    """What a piece of feedback, an annotator, a model or an answer with this `id` led to; None where there is none.

    `round`: the last one that is known to have taken its snapshot; what was said since waits. `user`: the pseudonym
    that stands for `id` if it is an application's name for one of its users.
    """
    column = tables.feedback.c
    about = sa.or_(column.completion_id == id, column.a_id == id, column.b_id == id)
    ways: list[tuple[Literal["feedback", "annotator", "artifact", "completion"], sa.ColumnElement[bool]]] = [
        ("feedback", column.id == id),
        ("annotator", column.annotator == id),
        ("artifact", column.id.in_(feedback_of(id).order_by(None))),
        ("completion", about),
    ]
    if user is not None:
        ways.append(("annotator", column.annotator == user))
    with store.database.read() as connection:
        round = max(round, connection.scalar(sa.select(sa.func.max(tables.artifacts.c.round))) or 0)
        for what, where in ways:
            counted = connection.execute(sa.select(column.kind, sa.func.count()).where(where).group_by(column.kind))
            kinds: dict[str, int] = dict(counted.tuples().all())
            if kinds:
                if what == "artifact":
                    uses = _uses(connection, _learned(connection, id))
                else:
                    uses = _uses(connection, models_of(connection, sa.select(column.id).where(where)))
                pieces = _pieces(connection, where, round)
                return Trace(what=what, id=id, total=sum(kinds.values()), kinds=kinds, uses=uses, pieces=pieces)
        if connection.scalar(sa.select(tables.artifacts.c.id).where(tables.artifacts.c.id == id)):
            return Trace(what="artifact", id=id, total=0, kinds={}, uses=_uses(connection, _learned(connection, id)))
        if connection.scalar(sa.select(tables.completions.c.id).where(tables.completions.c.id == id)):
            return Trace(what="completion", id=id, total=0, kinds={})
    return None


def _learned(connection: sa.Connection, model: str) -> dict[str, int]:
    """The model alone, with how much it was trained on."""
    ids = feedback_of(model).order_by(None).subquery()
    return {model: connection.scalar(sa.select(sa.func.count()).select_from(ids)) or 0}


def _uses(connection: sa.Connection, pieces: dict[str, int]) -> list[Use]:
    """The models, by id, with how much of the feedback each was trained on."""
    artifact = tables.artifacts.c
    promoted = sa.select(tables.promotions.c.number).where(tables.promotions.c.artifact_id == artifact.id).exists()
    query = sa.select(artifact.id, artifact.kind, artifact.round, promoted.label("promoted")).order_by(artifact.number)
    return [
        Use(id=row.id, kind=row.kind, round=row.round, pieces=pieces[row.id], promoted=bool(row.promoted))
        for row in connection.execute(query)
        if row.id in pieces
    ]


def _pieces(connection: sa.Connection, where: sa.ColumnElement[bool], round: int) -> list[Piece]:
    column, prompt = tables.feedback.c, tables.prompts.c
    rows = connection.execute(
        sa.select(tables.feedback, prompt.split)
        .join(tables.prompts, prompt.id == column.prompt_id)
        .where(where)
        .order_by(column.number.desc())
        .limit(LISTED)
    ).all()
    later = tables.feedback.alias()
    ids = [row.id for row in rows]
    used = times_used(connection, ids)
    correcting = sa.select(later.c.supersedes, later.c.kind).where(later.c.supersedes.in_(ids))
    corrected: dict[str, str] = dict(connection.execute(correcting).tuples().all())
    found = []
    for row in rows:
        body = json.loads(row.body)
        state = _state(connection, row, used.get(row.id, 0), corrected.get(row.id), round)
        found.append(
            Piece(
                id=row.id,
                kind=row.kind,
                annotator=row.annotator,
                created_at=row.created_at,
                round=row.round,
                prompt_id=row.prompt_id,
                said=_said(body),
                state=state,
                used=row.id in used,
            )
        )
    return found


def _state(connection: sa.Connection, row: Any, used: int, corrected: str | None, round: int) -> str:
    """What became of a piece of feedback, in words."""
    if used:
        after = f", and then {_BY[corrected]}: later rounds leave it out" if corrected in _BY else ""
        return f"trained {used} model{'s' if used > 1 else ''}{after}"
    if corrected is not None:
        return f"{_BY.get(corrected, 'replaced by a later one')} before anything learned from it"
    if row.kind == "retraction":
        return "takes another piece back"
    if row.split not in ("train", "judge"):
        return f"on a prompt that nothing is trained on (split {row.split})"
    if row.round >= round:
        return f"waits for round {round + 1}"
    reason = connection.scalar(
        sa.select(tables.quarantine.c.reason)
        .where(holds(tables.quarantine.c.raw, "id", f'"{row.id}"'))
        .order_by(tables.quarantine.c.number.desc())
        .limit(1)
    )
    if reason:
        return f"left out: {reason}"
    return _NOTHING.get(row.kind, "read, but no model was trained on it (its pair was left out, or not needed)")


_BY = {
    "retraction": "taken back",
    **dict.fromkeys(("preference", "skip", "thumb", "rating"), "replaced by a later one"),
}
_NOTHING = {
    "skip": "counted; a skip trains nothing",
    "critique": "read; a critique trains what the recipe's `critiques:` block says",
    "implicit": "counted; implicit feedback trains only what the recipe's feedback.implicit names",
}


def _said(body: dict[str, Any]) -> str:
    """A piece of feedback in a few words; never a text, which may be long."""
    kind = body["kind"]
    if kind == "preference":
        winner = {"a": "first of the pair is better", "b": "second of the pair is better", "both_bad": "both bad"}
        return winner.get(body["winner"], "tie")
    if kind == "thumb":
        return "thumbs up" if body["label"] else "thumbs down"
    if kind == "rating":
        return f"{body['score']:g} of {body['scale'][1]:g}"
    if kind == "implicit":
        return str(body["action"])
    return str(kind)
