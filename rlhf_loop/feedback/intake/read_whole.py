"""A whole file of feedback in memory; `import_file.import_file` streams one of any size into a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_loop.feedback.files.row import Refused, RowError
from rlhf_loop.feedback.intake.open_rows import Parsed, open_rows
from rlhf_loop.records import Artifact, Completion, Feedback, Prompt, Question, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What a file holds."""

    format: str
    rows: int = 0  # all of them, refused ones too
    prompts: list[Prompt] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    repeated: int = 0  # records that say exactly what an earlier one of the file says
    notes: dict[str, int] = field(default_factory=dict)  # what was left out of rows that were taken: reason -> rows

    def lines(self) -> list[str]:
        """A summary for people."""
        found = [
            f"{len(records)} {name}"
            for name in ("prompts", "completions", "feedback", "scores", "artifacts", "questions")
            if (records := getattr(self, name))
        ]
        lines = [f"{self.rows} rows ({self.format}): {', '.join(found) or 'nothing'}"]
        if self.repeated:
            lines.append(f"{self.repeated} records repeat an earlier one and are taken once")
        lines += [f"{count} rows: {reason}" for reason, count in self.notes.items()]
        if self.refused:
            lines.append(f"{len(self.refused)} rows refused, such as")
            lines += [f"  {refused}" for refused in self.refused[:3]]
        return lines


def read(path: str | Path, format_name: str = "auto", annotator: str | None = None) -> ImportResult:
    """Reads feedback from a file; nothing is stored.

    `format_name`: a name in `importers.FORMATS`, or `auto`. `annotator`: the id of the person who gave feedback that
    names nobody; by default `import:` and the file's name.
    Rows that cannot be used are in `refused`, each with file, line and reason. Raises `UserError` when the file cannot
    be read at all or its format is not known.
    """
    reading = open_rows(path, format_name, annotator)
    refused: list[Refused] = []
    collected = _Collected()
    rows = 0
    for item in reading.rows:
        rows += 1
        if isinstance(item, Refused):
            refused.append(item)
            continue
        try:
            collected.add(item)
        except RowError as error:
            refused.append(Refused(item.place.file, item.row.line, str(error), item.row.raw))
    refused.sort(key=lambda item: item.line)
    empty = [item.reason for item in refused] == ["the file is empty"]
    return ImportResult(
        format=reading.format,
        rows=0 if empty else rows,
        refused=refused,
        repeated=collected.repeated,
        notes=dict(collected.notes),
        **{kind: list(records.values()) for kind, records in collected.records.items()},
    )


class _Collected:
    """Records by id, so that what many rows share is taken once."""

    def __init__(self) -> None:
        self.records: dict[str, dict[Any, Any]] = {
            name: {} for name in ("prompts", "completions", "feedback", "scores", "artifacts", "questions")
        }
        self.notes: Counter[str] = Counter()
        self.repeated = 0

    def add(self, parsed: Parsed) -> None:
        """Takes the records of one row, or none of them when one contradicts an earlier row under the same id."""
        ready = []
        for record in parsed.records:
            name, key = _table_and_key(record)
            earlier = self.records[name].get(key)
            if earlier is not None and _plain(earlier) != _plain(record):
                raise RowError(f"the id {key} stands for something else in an earlier row; ids must be unique")
            ready.append((name, key, record, earlier is not None))
        for name, key, record, repeats in ready:
            if repeats:
                self.repeated += name not in ("prompts", "completions")
            else:
                self.records[name][key] = record
        self.notes.update(parsed.notes)


def _table_and_key(record: Any) -> tuple[str, Any]:
    if isinstance(record, Score):
        return "scores", (record.completion_id, record.reward_model)
    names = {Prompt: "prompts", Completion: "completions", Artifact: "artifacts", Question: "questions"}
    return names.get(type(record), "feedback"), record.id


def _plain(record: Any) -> dict[str, Any]:
    """The record without the place it was read from."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "source"}
