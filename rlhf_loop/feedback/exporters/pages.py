"""Records of a store page by page, so that an export of a million takes the memory of a few thousand.

The caller holds a transaction open (`with store.database.read()`), so that pages and the texts they are about are of
one state of the store, whatever is added or deleted meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.conditions import in_force
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import about, records_of
from rlhf_loop.records import Completion, Feedback, Prompt, Score

PAGE = 5000

_TYPES: dict[str, Any] = {"prompts": Prompt, "completions": Completion, "scores": Score, "feedback": Feedback}


def pages(store: Store, table: sa.Table, *where: sa.ColumnElement[bool]) -> Iterator[list[Any]]:
    """All records of a table in the order in which they were added, some thousands at a time."""
    last = -1
    while True:
        query = sa.select(table).where(table.c.number > last, *where).order_by(table.c.number).limit(PAGE)
        with store.database.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        last = rows[-1].number
        yield records_of(_TYPES[table.name], rows)


def effective_feedback(store: Store, left_out: Counter[str]) -> Iterator[list[Feedback]]:
    """Feedback that is in force; how many others there are is counted in `left_out`."""
    with store.database.read() as connection:
        count = sa.select(sa.func.count()).select_from(tables.feedback)
        superseded = (connection.scalar(count) or 0) - (connection.scalar(count.where(in_force())) or 0)
    if superseded:
        left_out["superseded left out (a correction stands in for each)"] += superseded
    yield from pages(store, tables.feedback, in_force())


def texts_of(store: Store, feedback: list[Feedback]) -> tuple[dict[str, Prompt], dict[str, Completion]]:
    """The prompts and completions that a page of feedback is about, by id."""
    prompts = {prompt.id: prompt for prompt in store.prompts(ids={record.prompt_id for record in feedback})}
    ids = {id for record in feedback for id in about(record)}
    return prompts, {completion.id: completion for completion in store.completions(ids=ids)}
