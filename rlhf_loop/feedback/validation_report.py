"""What a validation says: which feedback may train, which may not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_loop.records import (
    Feedback,
)

CHECKS = {
    "unknown": "name a prompt or completion that is not there",
    "untrained": "are about a conversation with tools or with more than text, which nothing is trained on",
    "empty": "have an empty prompt or answer",
    "identical": "compare an answer with itself",
    "overlong": "have an answer that is too long",
    "leakage": "share a prompt or an answer with the held-out prompts",
    "duplicate": "repeat what the same annotator said before",
    "contradiction": "were outvoted or contradict each other",
    "vague_critique": "have a critique too vague to act on",
    "tie": "call a tie",
    "both_bad": "call both answers bad",
    "skip": "decline to judge",
    "cycle": "are part of a circle: a beats b beats c beats a",
}
"""What is counted, and how a person reads it. Ties, skips, vague critiques, circles and what is about conversations
that nothing is trained on are counted, not quarantined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """What may train, what may not, and why."""

    usable: list[Feedback]  # decided preferences, and the other kinds that passed
    quarantined: list[tuple[Feedback, str]]  # with the reason
    set_aside: list[Feedback]  # sound, but no pair: ties, both bad, skips, conversations that are not trained on
    counts: dict[str, int]  # by the names in `CHECKS`
    examples: dict[str, list[str]]  # up to three of each
    per_annotator: dict[str, dict[str, int]]  # given, usable, quarantined, set_aside
    total: int
    pairs: int  # different pairs on training prompts with a decided, usable preference
    min_pairs: int
    needed: int | None  # how many more pairs the next update needs; None when there are enough

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types, with the ids and reasons of what was quarantined."""
        return {
            "total": self.total,
            "usable": len(self.usable),
            "quarantined": [{"id": record.id, "kind": record.kind, "reason": why} for record, why in self.quarantined],
            "set_aside": len(self.set_aside),
            "pairs": self.pairs,
            "min_pairs": self.min_pairs,
            "needed": self.needed,
            "counts": self.counts,
            "examples": self.examples,
            "per_annotator": self.per_annotator,
        }

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [
            f"{self.total} pieces of feedback: {len(self.usable)} usable ({self.pairs} pairs to train on), "
            f"{len(self.quarantined)} quarantined, {len(self.set_aside)} set aside"
        ]
        for check, count in self.counts.items():
            if count:
                lines.append(f"  {count} {CHECKS[check]}")
                lines += [f"      {example}" for example in self.examples.get(check, [])]
        if self.needed is not None:
            lines.append(
                f"too little for a meaningful update: {self.pairs} usable pairs, {self.needed} more are needed "
                f"(feedback.validation.min_pairs is {self.min_pairs})"
            )
        return lines
