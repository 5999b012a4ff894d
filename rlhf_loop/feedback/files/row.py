"""A row of a file: read, refused, or noted."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from rlhf_loop.records import sound

RAW_LENGTH = 10_000  # characters of a refused row that are kept
MAX_ROW = 32 * 2**20  # bytes of a line, or characters of an element of a JSON list


class Refused(NamedTuple):
    """A row that was not taken, and why."""

    file: str
    line: int
    reason: str
    raw: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Row(NamedTuple):
    """A row that could be read; `line` counts from 1 (in Parquet and in a JSON list: the row)."""

    line: int
    values: dict[str, Any]
    text: str | None = None  # as it stood in the file; None where that was no text
    file: str = ""  # where it stands, when that is not the file that was asked for

    @property
    def raw(self) -> str:
        """The row as text, for the quarantine."""
        return raw_text(self.values) if self.text is None else self.text[:RAW_LENGTH]


class Note(NamedTuple):
    """Something of a row that is left out though the row is taken, or how it was understood; counted by text."""

    text: str


class RowError(ValueError):
    """What is wrong with a row; it becomes the reason of a `Refused`."""


def raw_text(row: dict[str, Any]) -> str:
    """A row as JSON text, for the quarantine."""
    return sound(json.dumps(row, ensure_ascii=False, default=str)[:RAW_LENGTH])
