"""What goes on in a store, for the dashboard: counted in SQL once, and then counted on.

Agreement, position and pace are measured on the newest preferences (`SAMPLE`): what they are now, at a cost that does
not grow. `rlhf-loop feedback check` measures all of them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.quality import calibration, measures
from rlhf_loop.feedback.quality.measures import Agreement
from rlhf_loop.feedback.quality.significance import Share, share
from rlhf_loop.feedback.quality.votes import identical_pairs, votes_of
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import is_calibration
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Feedback, Preference, from_dict

SAMPLE = 5000
"""How many of the newest preferences agreement and position are measured on."""

MOST_ANNOTATORS = 25
"""How many annotators are listed: those with the most feedback."""

HOUR, DAY = 3600, 86400


@dataclass(kw_only=True, slots=True)
class AnnotatorRow:
    """What one annotator did."""

    name: str
    kinds: dict[str, int]  # kind of feedback -> how many pieces
    last: float  # when, in seconds since the epoch
    first_shown_wins: Share | None = None  # of their newest preferences
    agreed: tuple[int, int] | None = None  # comparisons with others about the same pair: same verdict, all
    seconds: float | None = None  # median a card
    calibration: tuple[int, int] | None = None  # cards with known answers: right, in all

    @property
    def total(self) -> int:
        """Pieces of feedback."""
        return sum(self.kinds.values())


@dataclass(kw_only=True, slots=True)
class Activity:
    """What goes on in a store."""

    kinds: dict[str, int]  # of feedback that stands -> how many
    corrected: int  # pieces that a later one replaced or took back
    open: int  # questions that wait
    answered: int
    held: int  # cards that somebody has open now
    held_by: dict[str, int]
    hours: list[tuple[float, int]]  # the last 24: when each begins, pieces of feedback in it
    days: list[tuple[float, int]]  # the last 14, in UTC
    annotators: list[AnnotatorRow]
    more_annotators: int  # that are not listed
    sample: int  # preferences that the rest is measured on; none compares two answers of one text
    agreement: Agreement | None = None
    first_shown_wins: Share | None = None
    verdicts: dict[str, int] = field(default_factory=dict)


class ActivityReader:
    """Reads what goes on in a store again and again: whole the first time, then only what was added since.

    Feedback is append-only and arrives in order, so counting on from the last number is enough. Where rows are gone
    (somebody's feedback was deleted) all is counted anew. May be called from several threads.
    """

    def __init__(self, store: Store):
        self.store = store
        self._lock = threading.Lock()
        self._forget()

    def read(self, now: float | None = None) -> Activity:
        """What goes on; `now` in seconds since the epoch."""
        now = time.time() if now is None else now
        with self._lock, self.store.database.read() as connection:
            self._count_on(connection)
            kinds = Counter({kind: count for kind, count in self._kinds.items() if kind != "retraction"})
            kinds.subtract(self._corrected)
            listed = sorted(self._annotators.values(), key=lambda row: (-row.total, row.name))
            found = Activity(
                kinds={kind: count for kind, count in kinds.most_common() if count > 0},
                corrected=self._corrected.total(),
                **_queue(connection, now),
                hours=self._over_time(now, HOUR, 24),
                days=self._over_time(now, DAY, 14),
                annotators=[replace(row) for row in listed[:MOST_ANNOTATORS]],
                more_annotators=max(0, len(listed) - MOST_ANNOTATORS),
                sample=len(self._sample),
            )
            sample = list(self._sample.values())
        _measure(found, sample)
        _calibration(self.store, found.annotators)
        return found

    def _forget(self) -> None:
        self._last = 0  # number of the last row
        self._deletions: int | None = None  # number of the last tombstone
        self._kinds: Counter[str] = Counter()
        self._corrected: Counter[str] = Counter()  # kind -> pieces that a later one replaced or took back
        self._annotators: dict[str, AnnotatorRow] = {}
        self._hours: Counter[int] = Counter()  # hour since the epoch -> pieces
        self._sample: dict[str, Preference] = {}  # by id, oldest first

    def _count_on(self, connection: sa.Connection) -> None:
        column = tables.feedback.c
        deletions = connection.scalar(sa.select(sa.func.max(tables.tombstones.c.number))) or 0
        if deletions != self._deletions:  # rows are gone; SQLite gives their numbers to new ones
            self._forget()
        newest = connection.scalar(sa.select(sa.func.max(column.number))) or 0
        fresh = sa.and_(column.number > self._last, column.number <= newest)
        hour = sa.cast(sa.func.floor(column.created_at / HOUR), sa.Integer)
        for annotator, kind, at, count, last in connection.execute(
            sa.select(column.annotator, column.kind, hour, sa.func.count(), sa.func.max(column.created_at))
            .where(fresh)
            .group_by(column.annotator, column.kind, hour)
        ).all():
            self._kinds[kind] += count
            if kind != "retraction":
                self._hours[at] += count
                row = self._annotators.setdefault(annotator, AnnotatorRow(name=annotator, kinds={}, last=last))
                row.kinds[kind] = row.kinds.get(kind, 0) + count
                row.last = max(row.last, last)
        preferences = connection.execute(
            sa.select(column.number, column.body)
            .where(column.kind == "preference", fresh)
            .order_by(column.number.desc())
            .limit(SAMPLE)
        ).all()
        oldest = preferences[-1].number if preferences else newest
        same = identical_pairs(connection, column.number >= oldest, column.number <= newest)
        said = [from_dict(Feedback, json.loads(row.body)) for row in reversed(preferences)]
        self._sample.update({one.id: one for one in said if frozenset((one.a_id, one.b_id)) not in same})
        self._take_corrected_out(connection, fresh)
        for id in list(self._sample)[:-SAMPLE]:
            del self._sample[id]
        self._last, self._deletions = newest, deletions

    def _take_corrected_out(self, connection: sa.Connection, fresh: sa.ColumnElement[bool]) -> None:
        column, earlier = tables.feedback.c, tables.feedback.alias()
        corrected = (
            sa.select(earlier.c.id, earlier.c.kind)
            .join(tables.feedback, column.supersedes == earlier.c.id)
            .where(fresh, column.supersedes.is_not(None))
        )
        for row in connection.execute(corrected):
            self._corrected[row.kind] += 1
            self._sample.pop(row.id, None)

    def _over_time(self, now: float, seconds: int, n: int) -> list[tuple[float, int]]:
        """Pieces of feedback in each of the last `n` hours or days (UTC), the running one included."""
        first = int(now) // seconds - n + 1
        counts: Counter[int] = Counter()
        for hour, count in self._hours.items():
            counts[hour * HOUR // seconds] += count
        return [((first + place) * seconds, counts[first + place]) for place in range(n)]


def _queue(connection: sa.Connection, now: float) -> dict[str, Any]:
    question, lease = tables.questions.c, tables.leases.c
    counted = sa.select(question.answered, sa.func.count()).where(sa.not_(is_calibration())).group_by(question.answered)
    answered: dict[bool, int] = dict(connection.execute(counted).tuples().all())
    held = connection.execute(
        sa.select(lease.annotator, sa.func.count()).where(lease.until > now).group_by(lease.annotator)
    )
    held_by: dict[str, int] = dict(held.tuples().all())
    return {
        "open": answered.get(False, 0),
        "answered": answered.get(True, 0),
        "held": sum(held_by.values()),
        "held_by": held_by,
    }


def _measure(found: Activity, sample: Sequence[Preference]) -> None:
    """Agreement, position and pace, of all and of each annotator."""
    votes = votes_of(sample)
    first = measures.shown_first_wins(votes)
    first_won, shown = first.by_annotator(votes)
    agreed, compared = measures.agreement_with_others(votes)
    seconds = measures.median_seconds(votes)
    found.agreement = measures.agreement(votes)
    found.first_shown_wins = first.share() if first.told.any() else None
    found.verdicts = dict(Counter(preference.winner for preference in sample).most_common())
    number = {name: place for place, name in enumerate(votes.annotators)}
    for annotator in found.annotators:
        a = number.get(annotator.name)
        if a is not None:
            annotator.first_shown_wins = share(int(first_won[a]), int(shown[a])) if shown[a] else None
            annotator.agreed = (int(agreed[a]), int(compared[a])) if compared[a] else None
            annotator.seconds = seconds[a]


def _calibration(store: Store, annotators: Iterable[AnnotatorRow]) -> None:
    """How many cards with known answers each got right."""
    known = calibration.known_answers(store)
    if not known:
        return
    votes = calibration.votes_on_items(store)
    right, total = calibration.answers(votes, known).by_annotator(votes)
    given = {name: (int(right[a]), int(total[a])) for a, name in enumerate(votes.annotators)}
    for annotator in annotators:
        annotator.calibration = given.get(annotator.name)
