"""Questions whose answer is known, hidden among the others: who gets them right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from rlhf_loop.feedback.quality.votes import BOTH_BAD, FIRST, SECOND, TIE, Votes, read_votes
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import is_calibration
from rlhf_loop.feedback.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers to calibration items, in order of time."""

    row: NDArray[np.int64]  # (M,) the vote
    passed: NDArray[np.bool_]  # (M,)
    items: int  # how many pairs have a known answer

    def by_annotator(self, votes: Votes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(A,), (A,): how many answers of each annotator were right, and all of them."""
        count = len(votes.annotators)
        right = np.bincount(votes.annotator[self.row[self.passed]], minlength=count)
        return right, np.bincount(votes.annotator[self.row], minlength=count)


def votes_on_items(store: Store) -> Votes:
    """The votes on pairs with a known answer alone."""
    items = sa.select(tables.questions.c.pair).where(is_calibration())
    return read_votes(store, tables.feedback.c.pair.in_(items))


def known_answers(store: Store) -> dict[tuple[str, str], int]:
    """Pair of completion ids, in alphabetical order -> the verdict it should get."""
    column = tables.questions.c
    with store.database.read() as connection:
        bodies = connection.scalars(sa.select(column.body).where(is_calibration()).order_by(column.number)).all()
    found = {}
    for text in bodies:
        body: Mapping[str, str] = json.loads(text)
        a_first = body["a_id"] <= body["b_id"]
        verdict = {"tie": TIE, "both_bad": BOTH_BAD}.get(body["known"])
        if verdict is None:
            verdict = FIRST if (body["known"] == "a") == a_first else SECOND
        found[(min(body["a_id"], body["b_id"]), max(body["a_id"], body["b_id"]))] = verdict
    return found


def answers(votes: Votes, known: Mapping[tuple[str, str], int]) -> Answers:
    """Which votes answered items with a `known` verdict, and whether they gave it."""
    number = {id: place for place, id in enumerate(votes.completions)} if known else {}
    pairs = {(number[a], number[b]): verdict for (a, b), verdict in known.items() if a in number and b in number}
    right = np.full(votes.units, -1, dtype=np.int64)
    for unit, pair in enumerate(zip(votes.first.tolist(), votes.second.tolist(), strict=True) if pairs else ()):
        right[unit] = pairs.get(pair, -1)
    rows = np.flatnonzero(right[votes.unit] >= 0)
    rows = rows[np.argsort(votes.time[rows], kind="stable")]
    return Answers(row=rows, passed=votes.verdict[rows] == right[votes.unit[rows]], items=len(known))
