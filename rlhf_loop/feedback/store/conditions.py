"""What a row of the store is: feedback that is in force, a question that is open, a calibration card.

One SQL condition for each, so that everybody who asks gets the same answer.
"""

from __future__ import annotations

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables

CALIBRATION_PRIORITY = -1.0
"""Of calibration cards: below all other questions, and how the queue's index finds them."""


def in_force(feedback: sa.FromClause = tables.feedback) -> sa.ColumnElement[bool]:
    """Of feedback (the table, or an alias of it): it says something, and no later record supersedes it."""
    later = tables.feedback.alias()
    superseded = sa.select(later.c.number).where(later.c.supersedes == feedback.c.id).exists()
    return sa.and_(feedback.c.kind != "retraction", sa.not_(superseded))


def is_open(questions: sa.FromClause = tables.questions) -> sa.ColumnElement[bool]:
    """Of a question: nobody, or not yet enough people, have answered it."""
    return sa.not_(questions.c.answered)


def is_calibration(questions: sa.FromClause = tables.questions) -> sa.ColumnElement[bool]:
    """Of a question: its answer is known. No round waits for it, as it has an overlap of 0."""
    return sa.and_(questions.c.answered, questions.c.priority == CALIBRATION_PRIORITY, questions.c.overlap == 0)
