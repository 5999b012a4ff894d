"""Importing feedback of any amount: streamed, in memory that does not grow, and again without harm.

    summary = import_file(store, "votes.jsonl")
    print("\n".join(summary.lines()))

Every row of a file ends up in one of three places, and is counted there: accepted (it brought something new), duplicate
(all it says is in the store) or rejected (with file, line and reason, in the store's quarantine).

One thread reads and makes rows of the tables, while SQLite, which needs no Python for it, writes those before. What was
committed stays when an import is interrupted; the same command goes on from there, because it adds nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.bulk_rows import Batch
from rlhf_loop.feedback.bulk_write import BatchWriter
from rlhf_loop.feedback.collector import collector_paused
from rlhf_loop.feedback.importers.reading import Parsed, Reading, open_rows
from rlhf_loop.feedback.redaction import RedactorName, make_redactor
from rlhf_loop.feedback.rows import Refused
from rlhf_loop.feedback.store import Store

BATCH_ROWS = 5000
BATCH_CHARACTERS = 16 * 2**20  # of what is written, whichever comes first
TRANSACTION_SECONDS = 5.0  # others wait for so long at most; the longer, the less is written twice to the indexes


@dataclass(kw_only=True, slots=True)
class ImportSummary:
    """What became of the rows of a file."""

    format: str = ""
    rows: int = 0
    accepted: int = 0  # rows that brought something new
    duplicate: int = 0  # rows whose records are all there already
    contradictory: int = 0  # of the accepted: the same person gave the opposite verdict on the same pair before
    redacted: int = 0  # rows in which something was redacted
    rejected: int = 0
    new: Counter[str] = field(default_factory=Counter)  # records by table
    redactions: Counter[str] = field(default_factory=Counter)  # by kind of data
    notes: Counter[str] = field(default_factory=Counter)  # what was left out of rows that were taken: reason -> rows
    reasons: Counter[str] = field(default_factory=Counter)  # of rejected rows; `other reasons` when there are many
    examples: list[Refused] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """A table for people."""
        width = max(len(f"{self.rows:,}"), 1)
        brought = ", ".join(f"{count:,} {name}" for name, count in self.new.items() if count and name != "quarantined")
        table = [
            ("accepted", self.accepted, brought),
            ("duplicate", self.duplicate, "nothing new in them"),
            ("contradictory", self.contradictory, "accepted, against an earlier verdict of the same person"),
            ("redacted", self.redacted, ", ".join(f"{count:,} {name}" for name, count in self.redactions.items())),
            ("rejected", self.rejected, "kept in the quarantine"),
        ]
        lines = [f"{self.rows:,} rows ({self.format}) in {self.seconds:.1f} s"]
        lines += [f"  {name:<13} {count:>{width},}  {what if count else ''}".rstrip() for name, count, what in table]
        lines += [f"  {count:,} rows: {reason}" for reason, count in self.notes.items()]
        lines += [f"  {refused}" for refused in self.examples]
        if self.rejected > len(self.examples):
            lines.append(f"  ... and {self.rejected - len(self.examples):,} more rejected rows")
        if self.rows and self.duplicate == self.rows:
            lines.append("everything in it is in the store already: nothing has changed")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        counts = ("rows", "accepted", "duplicate", "contradictory", "redacted", "rejected")
        return {
            "format": self.format,
            **{name: getattr(self, name) for name in counts},
            "new": dict(self.new),
            "redactions": dict(self.redactions),
            "notes": dict(self.notes),
            "reasons": dict(self.reasons),
            "examples": [refused._asdict() for refused in self.examples],
            "seconds": round(self.seconds, 3),
        }


def import_file(
    store: Store,
    path: str | Path,
    format: str = "auto",
    *,
    annotator: str | None = None,
    columns: Mapping[str, str] | None = None,
    redact: RedactorName = "patterns",
    progress: Callable[[ImportSummary], None] | None = None,
) -> ImportSummary:
    """Brings a file, a folder of a data set or `hf:OWNER/NAME` into the store.

    `format`, `annotator`, `columns`: see `importers.reading.open_rows`. `redact`: what takes personal data out of every
    text before it is stored. `progress` is called after every transaction.

    Records are those that `importers.read` and `save` would store, but for two things: what feedback is about must
    stand before it in the file (exports are written so), and a row is refused when its id stands for something else in
    the store. Raises `UserError` when the file cannot be read at all.
    """
    started = time.perf_counter()
    with collector_paused():  # a quarter of the time would go into looking for cycles
        return _import(store, open_rows(path, format, annotator, columns, make_redactor(redact)), started, progress)


def column_map(given: Iterable[str]) -> dict[str, str]:
    """`["prompt=question,chosen=better", "group=topic"]` as names of columns; a `UserError` where that is none."""
    columns: dict[str, str] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        name, equals, own = (piece.strip() for piece in part.partition("="))
        if not (name and equals and own) or name in columns:
            raise UserError(f"--map {part}: give NAME=COLUMN, each name once, such as prompt=question,chosen=better")
        columns[name] = own
    return columns


def redactor_name(given: str) -> RedactorName:
    """A redactor's name, checked; a `UserError` for another."""
    if given not in get_args(RedactorName):
        raise UserError(f"--redact {given}: there is no such redactor; known: {', '.join(get_args(RedactorName))}")
    return cast(RedactorName, given)


def _import(
    store: Store, reading: Reading, started: float, progress: Callable[[ImportSummary], None] | None
) -> ImportSummary:
    summary = ImportSummary(format=reading.format)
    with BatchWriter(store, summary) as writer, _Ahead(batches_of(reading.rows)) as batches:
        while batches.wait():
            with writer.transaction():
                deadline = time.monotonic() + TRANSACTION_SECONDS
                while (batch := batches.take()) is not None:
                    writer.write(batch)
                    if time.monotonic() > deadline or not batches.ready():
                        break
            summary.seconds = time.perf_counter() - started
            if progress is not None:
                progress(summary)
    summary.seconds = time.perf_counter() - started
    return summary


def batches_of(items: Iterator[Parsed | Refused]) -> Iterator[Batch]:
    """Rows of a file in batches of a bounded size."""
    batch = Batch()
    for item in items:
        batch.add(item)
        if len(batch.items) >= BATCH_ROWS or batch.size >= BATCH_CHARACTERS:
            yield batch
            batch = Batch()
    if batch.items:
        yield batch


class _Ahead:
    """Batches, of which the next one is made in a thread of its own while this one is written."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-feedback")
        self._next: Future[Batch | None] = self._pool.submit(next, batches, None)

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wait(self) -> bool:
        """Waits for the next batch; False when there is none. Raises what reading it raised."""
        return self._next.result() is not None

    def ready(self) -> bool:
        """Whether `take` would not wait."""
        return self._next.done()

    def take(self) -> Batch | None:
        """The next batch, or None at the end; begins to make the one after it."""
        batch = self._next.result()
        if batch is not None:
            self._next = self._pool.submit(next, self._batches, None)
        return batch
