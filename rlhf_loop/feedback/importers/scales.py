"""On which scale a number was given, where a file does not say: one scale for each question of a source.

Before anything is made of a file, every number that it gives to a question is looked at once. What people say with
`--scale NAME=LOW:HIGH` goes before that; LOW is the worst, so `toxicity=1:0` says that 0 is best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.words import words_of

Scale = tuple[float, float]

MOST = 1000  # questions whose numbers are looked at; further ones are judged by each number alone


class Rated(NamedTuple):
    """A number on its scale, which begins with its worst end; `notes` say how the scale is known."""

    score: float
    scale: Scale
    notes: tuple[Note, ...] = ()


class Scales:
    """The scales of a source's questions."""

    def __init__(self, given: Mapping[str, Scale] | None = None):
        self.given = {_key(name): scale for name, scale in (given or {}).items()}
        self.names = dict(zip(self.given, given or {}, strict=True))
        self.seen: dict[str, tuple[float, float, bool]] = {}  # question -> lowest, highest, all of them whole
        self.others: set[str] = set()  # questions that were answered otherwise

    def see(self, question: str, value: float | None) -> None:
        """Takes note of a number before the scale is asked for, or of a question that was answered otherwise."""
        key = _key(question)
        if value is None or not math.isfinite(value):
            self.others.update([key] if len(self.others) < MOST else [])
            return
        low, high, whole = self.seen.get(key, (value, value, True))
        if key in self.seen or len(self.seen) < MOST:
            self.seen[key] = (min(low, value), max(high, value), whole and value == int(value))

    def unknown(self) -> list[str]:
        """What was given a scale and is no question of the source."""
        return [name for key, name in self.names.items() if key not in self.seen and key not in self.others]

    def says(self, question: str) -> bool:
        """Whether somebody said which numbers are good, so that the question's name need not say it."""
        return _key(question) in self.given

    def label(self, question: str, value: bool) -> bool:
        """Whether true or false is good, where somebody said on which scale they stand: `is_toxic=1:0`."""
        low, high = self.given[_key(question)]
        return value == (low < high)

    def within(self, question: str, low: float, high: float) -> bool:
        """Whether all numbers of a question lie between two."""
        lowest, highest, _ = self.seen.get(_key(question), (low, high, True))
        return low <= lowest and highest <= high

    def rated(self, question: str, value: float, usual: Scale | None = None) -> Rated | None:
        """A number on its question's scale; None where that cannot be told.

        `usual`: the scale of this tool's numbers where they fit on it. Raises `RowError` for a number outside the
        scale that was given.
        """
        key = _key(question)
        if key in self.given:
            low, high = self.given[key]
            if not min(low, high) <= value <= max(low, high):
                raise RowError(f"`{question}` is {value:g}, outside its scale {low:g} to {high:g} (--scale)")
            return Rated(value if low < high else low + high - value, (min(low, high), max(low, high)))
        lowest, highest, whole = self.seen.get(key, (value, value, value == int(value)))
        lowest, highest = min(lowest, value), max(highest, value)
        scale = _guessed(words_of(question), lowest, highest, whole, usual)
        if scale is None:
            return None
        if scale in (usual, (0.0, 1.0)):
            return Rated(value, scale)
        taken = f"it is taken as {scale[0]:g} to {scale[1]:g} (or say it: --scale NAME=LOW:HIGH)"
        return Rated(value, scale, (Note(f"the scale of {question[:40]} is not in the file; {taken}"),))

    def beyond_one(self, question: str, value: float) -> bool:
        """Whether a question's numbers are more than thumbs: others than -1, 0 and 1, or on a scale that was given."""
        low, high, whole = self.seen.get(_key(question), (value, value, value == int(value)))
        return self.says(question) or not whole or max(high, value) > 1 or min(low, value) < -1


def _guessed(words: str, lowest: float, highest: float, whole: bool, usual: Scale | None) -> Scale | None:
    """The usual scale that holds all numbers of a question."""
    if usual is not None and usual[0] <= lowest and highest <= usual[1]:
        return usual
    likert = "likert" in words
    stars = "star" in words or likert
    if lowest < 0:
        return (-1.0, 1.0) if lowest >= -1 and highest <= 1 else None
    if not stars and highest <= 1:
        # A lone 1 is the best of 0 to 1 in one file, and the worst of 1 to 5 in the next.
        return None if whole and lowest == highest == 1 else (0.0, 1.0)
    low = 1.0 if lowest >= 1 else 0.0
    if likert and 5 < highest <= 7:
        return (low, 7.0)
    if highest > 10:
        return (0.0, 100.0) if highest <= 100 else None
    return low, 5.0 if highest <= 5 else 10.0


def _key(question: str) -> str:
    return words_of(question)
