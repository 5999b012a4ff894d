"""Rows of a file as rows of the store's tables, in batches that are written together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rlhf_loop.feedback.files.row import Refused, Row
from rlhf_loop.feedback.intake.open_rows import Parsed
from rlhf_loop.feedback.store.table_rows import TableRow, completion_row, feedback_row, prompt_row
from rlhf_loop.records import Artifact, Completion, Prompt, Question, Score

BATCH_ROWS = 10_000  # the more, the less is written twice to the indexes
BATCH_CHARACTERS = 16 * 2**20  # of what is written, whichever comes first
TABLES = ("prompts", "completions", "feedback")
"""The tables that a batch has rows of, in the order in which they are written."""


class Prepared(NamedTuple):
    """A row of a file as rows of tables."""

    file: str
    row: Row  # without its values, where it has its text: only a refused row is asked for what it said
    rows: list[tuple[str, TableRow]]  # table and row of each record, in order; a row begins with its id
    notes: tuple[str, ...]
    redacted: Mapping[str, int]
    other: Any  # a score, artifact or question of the loop's own export


class Batch:
    """Rows of a file that are written together."""

    def __init__(self) -> None:
        self.items: list[Prepared | Refused] = []
        self.size = 0  # characters

    def add(self, item: Parsed | Refused) -> None:
        """Takes in the next row of the file."""
        if isinstance(item, Refused):
            self.items.append(item)
            self.size += len(item.raw)
            return
        rows: list[tuple[str, TableRow]] = []
        other = None
        for record in item.records:
            if isinstance(record, Prompt):
                rows.append(("prompts", prompt_row(record)))
            elif isinstance(record, Completion):
                rows.append(("completions", completion_row(record)))
            elif isinstance(record, (Score, Artifact, Question)):
                other = record
            else:
                rows.append(("feedback", feedback_row(record)))
        self.size += sum(len(row[-1]) + len(row[-2] or "") for _, row in rows)
        row = item.row
        if row.text is not None:
            row = Row(row.line, {}, row.text, row.file)
        self.items.append(Prepared(item.place.file, row, rows, item.notes, item.redacted, other))

    def rows(self) -> dict[str, dict[str, TableRow]]:
        """Table -> id -> row, the first of each id."""
        rows: dict[str, dict[str, TableRow]] = {name: {} for name in TABLES}
        for item in self.items:
            for name, row in () if isinstance(item, Refused) else item.rows:
                rows[name].setdefault(row[0], row)
        return rows


def named_in(name: str, row: TableRow) -> list[tuple[str, str]]:
    """The records that a row of a table names: table and id."""
    if name == "prompts":
        return []
    if name == "completions":
        return [("prompts", row[1])]
    return [("prompts", row[2]), *(("completions", id) for id in row[3:6] if id is not None)]


def batches_of(items: Iterable[Parsed | Refused]) -> Iterator[Batch]:
    """Rows of a file in batches of a bounded size."""
    batch = Batch()
    for item in items:
        batch.add(item)
        if len(batch.items) >= BATCH_ROWS or batch.size >= BATCH_CHARACTERS:
            yield batch
            batch = Batch()
    if batch.items:
        yield batch
