"""Importing feedback of any amount: streamed, in memory that does not grow, and again without harm.

    summary = import_file(store, "votes.jsonl")
    print("\n".join(summary.lines()))

Every row of a file ends up in one of three places, and is counted there: accepted (it brought something new), duplicate
(all it says is in the store) or rejected (with file, line and reason, in the store's quarantine).

What was committed stays when an import is interrupted; the same command goes on from there, because it adds nothing
twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import cast, get_args

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.importers.scales import Scale
from rlhf_loop.feedback.intake.batches import batches_of
from rlhf_loop.feedback.intake.open_rows import Parsed, open_rows
from rlhf_loop.feedback.intake.prompts import split_groups
from rlhf_loop.feedback.intake.summary import ImportSummary
from rlhf_loop.feedback.intake.writer import BatchWriter
from rlhf_loop.feedback.privacy.redaction import make_redactor
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import RedactorName
from rlhf_loop.records import Prompt, Split


def import_file(
    store: Store,
    path: str | Path,
    format_name: str = "auto",
    *,
    annotator: str | None = None,
    columns: Mapping[str, str] | None = None,
    redact: RedactorName = "patterns",
    scales: Mapping[str, Scale] | None = None,
    texts: str | Path | None = None,
    splits: Mapping[str, Split] | Split | None = None,
    progress: Callable[[ImportSummary], None] | None = None,
) -> ImportSummary:
    """Brings a file, a folder of a data set or `hf:OWNER/NAME` into the store.

    `format_name`, `annotator`, `columns`, `scales`, `texts`: see `open_rows`. `redact`: what takes
    personal data out of every text before it is stored. `splits`: of new prompts, by their group, or one for all.
    `progress` is called after every transaction.

    What feedback is about must stand before it in the file, or in the store; a row is refused when its id stands for
    something else there. Raises `UserError` when the file cannot be read at all.
    """
    started = time.perf_counter()
    reading = open_rows(path, format_name, annotator, columns, make_redactor(redact), scales, texts)
    summary = ImportSummary(format=reading.format)
    writer = BatchWriter(store, summary)
    for batch in batches_of(_with_splits(reading.rows, splits)):
        writer.write(batch)
        summary.seconds = time.perf_counter() - started
        if progress is not None:
            progress(summary)
    summary.seconds = time.perf_counter() - started
    return summary


def import_and_split(
    store: Store,
    path: Path,
    format_name: str,
    redact: RedactorName,
    seed: int,
    test_fraction: float,
    judge_fraction: float,
    scales: Mapping[str, Scale] | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImportSummary:
    """`import_file`, with new prompts in train, test or judge by their groups (`prompts.split_groups`)."""
    splits: Mapping[str, Split] | Split = "train"
    if test_fraction or judge_fraction:  # which takes reading the file once before
        groups = _groups(open_rows(path, format_name, columns=columns, redactor=make_redactor(redact)).rows)
        splits = split_groups(groups, seed, test_fraction, judge_fraction)
    return import_file(store, path, format_name, columns=columns, redact=redact, scales=scales, splits=splits)


def _groups(items: Iterable[Parsed | Refused]) -> set[str]:
    records = (record for item in items if not isinstance(item, Refused) for record in item.records)
    return {record.group for record in records if isinstance(record, Prompt)}


def _with_splits(
    items: Iterable[Parsed | Refused], splits: Mapping[str, Split] | Split | None
) -> Iterator[Parsed | Refused]:
    for item in items:
        if splits is not None and not isinstance(item, Refused):
            for place, record in enumerate(item.records):
                if isinstance(record, Prompt) and record.split != "untrained":
                    split = splits.get(record.group, "train") if isinstance(splits, Mapping) else splits
                    item.records[place] = replace(record, split=split)
        yield item


def column_map(given: Iterable[str]) -> dict[str, str]:
    """`["prompt=question,chosen=better", "group=topic"]` as names of columns; a `UserError` where that is none."""
    columns: dict[str, str] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        name, equals, own = (piece.strip() for piece in part.partition("="))
        if not (name and equals and own) or name in columns:
            raise UserError(f"--map {part}: give NAME=COLUMN, each name once, such as prompt=question,chosen=better")
        columns[name] = own
    return columns


def scale_map(given: Iterable[str]) -> dict[str, Scale]:
    """`["quality=1:7", "toxicity=1:0"]` as scales by question, the worst number first; a `UserError` where that is
    none."""
    scales: dict[str, Scale] = {}
    for text in given:
        name, equals, ends = (piece.strip() for piece in text.rpartition("="))
        low, colon, high = ends.partition(":")
        try:
            scale = float(low), float(high)
        except ValueError:
            scale = 0.0, 0.0
        if not (name and equals and colon) or name in scales or scale[0] == scale[1] or not isfinite(sum(scale)):
            raise UserError(
                f"--scale {text}: give NAME=LOW:HIGH, each name once, such as stars=1:5 (LOW is worst: toxicity=1:0)"
            )
        scales[name] = scale
    return scales


def redactor_name(given: str) -> RedactorName:
    """A redactor's name, checked; a `UserError` for another."""
    if given not in get_args(RedactorName):
        raise UserError(f"--redact {given}: there is no such redactor; known: {', '.join(get_args(RedactorName))}")
    return cast(RedactorName, given)
