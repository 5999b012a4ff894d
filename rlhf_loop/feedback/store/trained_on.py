"""Which feedback trained which model.

Models learn from nearly the same feedback, round after round: to list all of it for each of them would take rounds
times feedback. So models of a kind form series, in the order in which they were added, and a row of the table says
that a piece of feedback trained the models of a series from one on and, if it stopped, until which one:

    series  feedback_id  since  until      numbers of artifacts; `until` is the first without it, or null

A model goes on with the series that it shares most feedback with, or begins one of its own where that is shorter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import chunks

SAMPLE = 500
"""Pieces of a model's feedback by which its series is found."""

_span, _model = tables.trained_on.c, tables.artifacts.c
_trained = sa.and_(
    _span.series == _model.series,
    _span.since <= _model.number,
    sa.or_(_span.until.is_(None), _span.until > _model.number),
)


def feedback_of(model: str) -> sa.Select[tuple[str]]:
    """The query for the ids of what a model was trained on; what has trained its series for longer comes first."""
    ids = sa.select(_span.feedback_id).join_from(tables.artifacts, tables.trained_on, _trained)
    return ids.where(_model.id == model).order_by(_span.number)


def models_of(connection: sa.Connection, feedback: Sequence[str] | sa.Select[tuple[str]]) -> dict[str, int]:
    """The models trained on feedback, in the order they were added, each with how many pieces of it.

    `feedback`: ids, as many as go into one IN list, or a query for them.
    """
    spans = sa.select(_span.series, _span.since, _span.until).where(_span.feedback_id.in_(feedback))
    begin: dict[int, list[int]] = defaultdict(list)
    end: dict[int, list[int]] = defaultdict(list)
    for series, since, until in connection.execute(spans):
        begin[series].append(since)
        if until is not None:
            end[series].append(until)
    for numbers in (*begin.values(), *end.values()):
        numbers.sort()
    query = sa.select(_model.id, _model.number, _model.series).order_by(_model.number)
    counts = {
        id: bisect_right(begin[series], number) - bisect_right(end[series], number)
        for id, number, series in connection.execute(query)
        if series in begin
    }
    return {id: count for id, count in counts.items() if count}


def times_used(connection: sa.Connection, feedback: Iterable[str]) -> dict[str, int]:
    """How many models each of a few pieces of feedback trained; those that trained none are left out."""
    query = sa.select(_span.feedback_id, sa.func.count()).join_from(tables.artifacts, tables.trained_on, _trained)
    counted = query.where(_span.feedback_id.in_(list(feedback))).group_by(_span.feedback_id)
    return dict(connection.execute(counted).tuples().all())


def note(connection: sa.Connection, model: str, kind: str, feedback: Iterable[str]) -> None:
    """Notes what a model that was just added was trained on."""
    wanted = list(dict.fromkeys(feedback))
    if not wanted:
        return
    number: int = connection.execute(sa.select(_model.number).where(_model.id == model)).scalar_one()
    series = _closest(connection, kind, wanted)
    so_far: dict[str, int] = {}  # what trained the newest model of the series
    if series is not None:
        still = sa.select(_span.feedback_id, _span.number).where(_span.series == series, _span.until.is_(None))
        so_far = dict(connection.execute(still).tuples().all())
    ended = so_far.keys() - set(wanted)
    new = [id for id in wanted if id not in so_far]
    if series is None or len(ended) + len(new) > len(wanted):
        series, ended, new = number, set(), wanted
    for chunk in chunks(ended):
        rows = tables.trained_on.update().where(_span.number.in_([so_far[id] for id in chunk]))
        connection.execute(rows.values(until=number))
    if new:
        begun: list[dict[str, Any]] = [{"series": series, "feedback_id": id, "since": number} for id in new]
        connection.execute(tables.trained_on.insert(), begun)
    connection.execute(tables.artifacts.update().where(_model.number == number).values(series=series))


def _closest(connection: sa.Connection, kind: str, feedback: list[str]) -> int | None:
    """The series of models of this kind whose newest one shares most of the feedback; None where none shares any."""
    sample = feedback[:: -(-len(feedback) // SAMPLE)]
    shared = (
        sa.select(_span.series)
        .join_from(tables.trained_on, tables.artifacts, _model.number == _span.series)
        .where(_span.feedback_id.in_(sample), _span.until.is_(None), _model.kind == kind)
        .group_by(_span.series)
        .order_by(sa.func.count().desc(), _span.series.desc())
    )
    return connection.scalar(shared.limit(1))
