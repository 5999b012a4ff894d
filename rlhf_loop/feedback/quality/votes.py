"""Preferences as columns: what every measure of quality reads, for a million of them as for ten.

A pair of answers has two sides: the first is the one whose id comes first in the alphabet, however it was shown.
Which side an answer is on means nothing, so measures that compare verdicts treat the sides as exchangeable.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Preference, loads

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FIRST, SECOND, TIE, BOTH_BAD = range(4)
"""Verdicts: the first side is better, the second is, neither, both are bad."""

SWAPPED = np.array([SECOND, FIRST, TIE, BOTH_BAD])
"""The verdict seen with the sides exchanged."""

ROWS = 20_000  # rows fetched at a time


class Row(NamedTuple):
    """One preference, as it comes from a store or a record."""

    id: str
    prompt: str
    a_id: str
    b_id: str
    winner: str
    shown: str | None  # ab, ba
    annotator: str
    created_at: float
    lead_time: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """N preferences in the order of arrival; numbers index the lists of names."""

    ids: list[str]  # of the preferences
    unit: Ints  # (N,) number of the pair
    annotator: Ints  # (N,)
    verdict: Ints  # (N,) FIRST, SECOND, TIE, BOTH_BAD
    shown: Ints  # (N,) the side that was shown first: FIRST, SECOND, or -1 where it is not known
    time: Floats  # (N,) seconds since the epoch
    lead_time: Floats  # (N,) seconds, NaN where it is not known
    first: Ints  # (U,) number of the completion that is a pair's first side
    second: Ints  # (U,)
    prompt: Ints  # (U,) number of a pair's prompt
    annotators: list[str]
    completions: list[str]
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def units(self) -> int:
        """How many different pairs were judged."""
        return len(self.first)

    @property
    def decided(self) -> Bools:
        """(N,) whether a vote prefers one side."""
        return self.verdict <= SECOND

    def take(self, rows: NDArray[Any]) -> Votes:
        """Some of the votes (a mask or row numbers); pairs and names keep their numbers."""
        chosen = np.arange(len(self))[rows]
        columns = {name: getattr(self, name)[chosen] for name in _PER_VOTE}
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_PER_VOTE, "ids")}
        return Votes(ids=[self.ids[row] for row in chosen], **columns, **others)

    def last_of_each(self) -> Votes:
        """Only the last verdict of each annotator on each pair."""
        key = self.unit * len(self.annotators) + self.annotator
        _, last = np.unique(key[::-1], return_index=True)
        return self.take(np.sort(len(self) - 1 - last))


_PER_VOTE = ("unit", "annotator", "verdict", "shown", "time", "lead_time")


def votes_of(preferences: Iterable[Preference]) -> Votes:
    """Records as columns, but for those that compare an answer with itself."""
    return _columns(
        Row(p.id, p.prompt_id, p.a_id, p.b_id, p.winner, p.shown_order, p.annotator.id, p.created_at, p.lead_time)
        for p in preferences
        if p.a_id != p.b_id
    )


def read_votes(store: Store, *where: sa.ColumnElement[bool]) -> Votes:
    """The preferences of a store that no correction supersedes, but for those that compare an answer with itself.

    Such a pair says nothing, whatever was said of it: validation quarantines it, and no measure counts it. `where`:
    only those rows of `feedback` for which all of it holds.
    """
    with store.database.read() as connection:
        pairs = identical_pairs(connection, *where)
    return _columns(row for row in _stored(store, *where) if frozenset((row.a_id, row.b_id)) not in pairs)


def identical_pairs(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> set[frozenset[str]]:
    """The judged pairs whose two answers are the same text, but for spaces; an answer beside itself is one of one id.

    Only answers that were judged are read; `where` as for `read_votes`.
    """
    column = tables.feedback.c
    one, other = tables.completions.alias("one"), tables.completions.alias("other")
    query = (
        sa.select(column.a_id, column.b_id, one.c.text.label("a_text"), other.c.text.label("b_text"))
        .join_from(tables.feedback, one, one.c.id == column.a_id)
        .join(other, other.c.id == column.b_id)
        .where(column.kind == "preference", *where, _without_spaces(one.c.text) == _without_spaces(other.c.text))
    )
    rows = connection.execution_options(yield_per=ROWS).execute(query)
    return {frozenset((row.a_id, row.b_id)) for row in rows if plain_text(row.a_text) == plain_text(row.b_text)}


def _without_spaces(text: Any) -> Any:
    for space in (" ", "\n", "\r", "\t"):
        text = sa.func.replace(text, space, "")
    return text


def plain_text(text: str) -> str:
    """A text without what nobody sees a difference by: spaces and line breaks."""
    return " ".join(text.split())


def words_of(store: Store, votes: Votes) -> Ints:
    """(C,) words of each completion that was judged."""
    number = {id: place for place, id in enumerate(votes.completions)}
    words = np.zeros(len(number), dtype=np.int64)
    for id, text in judged_texts(store):
        place = number.get(id)
        if place is not None:
            words[place] = len(text.split())
    return words


def judged_texts(store: Store) -> Iterator[tuple[str, str]]:
    """Id and text of every completion that a preference is about, a few at a time."""
    column, said = tables.completions.c, tables.feedback.c
    judged = [sa.select(side).where(said.kind == "preference") for side in (said.a_id, said.b_id)]
    query = (
        sa.select(column.id, column.text, column.body).where(column.id.in_(sa.union(*judged))).order_by(column.number)
    )
    with store.database.read() as connection:
        for row in connection.execution_options(yield_per=ROWS).execute(query):
            # a text that the database cannot hold stands in the record itself
            yield row.id, loads(row.body).get("text", row.text) if '"text"' in row.body else row.text


def _stored(store: Store, *where: sa.ColumnElement[bool]) -> Iterator[Row]:
    column = tables.feedback.c
    query = (
        sa.select(column.id, column.prompt_id, column.a_id, column.b_id, column.created_at, column.body)
        .where(column.kind == "preference", in_force(), *where)
        .order_by(column.number)
    )
    with store.database.read() as connection:
        for id, prompt, a_id, b_id, created_at, text in connection.execution_options(yield_per=ROWS).execute(query):
            body = loads(text)
            who = body["annotator"]["id"]
            shown, seconds = body.get("shown_order"), body.get("lead_time")
            yield Row(id, prompt, a_id, b_id, body["winner"], shown, who, created_at, seconds)


def _columns(rows: Iterable[Row]) -> Votes:
    annotators: dict[str, int] = {}
    completions: dict[str, int] = {}
    prompts: dict[str, int] = {}
    units: dict[tuple[int, int], int] = {}
    unit_prompt, unit_of, annotator, verdict, shown = (array("q") for _ in range(5))
    time, lead_time = array("d"), array("d")
    ids: list[str] = []
    for row in rows:
        a_first = row.a_id <= row.b_id
        sides = (row.a_id, row.b_id) if a_first else (row.b_id, row.a_id)
        pair = (completions.setdefault(sides[0], len(completions)), completions.setdefault(sides[1], len(completions)))
        unit = units.setdefault(pair, len(units))
        if unit == len(unit_prompt):
            unit_prompt.append(prompts.setdefault(row.prompt, len(prompts)))
        ids.append(row.id)
        unit_of.append(unit)
        annotator.append(annotators.setdefault(row.annotator, len(annotators)))
        verdict.append(_UNDECIDED.get(row.winner, FIRST if (row.winner == "a") == a_first else SECOND))
        shown.append(-1 if row.shown is None else FIRST if (row.shown == "ab") == a_first else SECOND)
        time.append(row.created_at)
        lead_time.append(math.nan if row.lead_time is None else row.lead_time)
    pairs = np.array(list(units), dtype=np.int64).reshape(-1, 2)
    return Votes(
        ids=ids,
        unit=np.array(unit_of),
        annotator=np.array(annotator),
        verdict=np.array(verdict),
        shown=np.array(shown),
        time=np.array(time),
        lead_time=np.array(lead_time),
        first=pairs[:, 0].copy(),
        second=pairs[:, 1].copy(),
        prompt=np.array(unit_prompt),
        annotators=list(annotators),
        completions=list(completions),
        prompts=list(prompts),
    )


_UNDECIDED = {"tie": TIE, "both_bad": BOTH_BAD}
