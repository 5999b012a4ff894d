"""What became of the rows of an imported file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlhf_loop.feedback.files.row import Refused


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

    @property
    def all_rejected(self) -> bool:
        """Whether the file has rows and none of them can be used."""
        return 0 < self.rows == self.rejected

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
