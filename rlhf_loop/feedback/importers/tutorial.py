"""The JSON Lines of feedback tutorials: `{"input", "response", "feedback"}`.

A text in `feedback` becomes a critique of the response; a word such as `good` or `bad`, true, false, 0 or -1 a thumb; a
number from 2 to 5 a rating. A 1 is the lowest of five stars in one file and praise in the next, so it needs a `scale`
beside it: `[1, 5]`, or `[0, 1]` for a thumb; or say it for the whole file, `--scale feedback=1:5`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.importers.asked import PARTS, asked, holds_question, not_read
from rlhf_loop.feedback.importers.conversations import answer_of
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    made_of,
    optional_id,
    optional_number,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.importers.times import NAMES as TIMES
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.records import Critique, Rating, Thumb

RECOGNISES = 'feedback tutorials: rows of {"input", "response", "feedback"}'
REQUIRED = [("input", "response", "feedback")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "response" in row and "feedback" in row and holds_question(row)


KNOWN = frozenset((*PARTS, *TIMES, "response", "feedback", "scale", "id", "annotator", "group"))


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that people gave, by question."""
    said = row.get("feedback")
    if isinstance(said, (int, float)) and not isinstance(said, bool) and row.get("scale") is None:
        yield "feedback", float(said)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the completion, and a critique, a thumb or a rating."""
    missing = [key for key in ("response", "feedback") if row.get(key) in (None, "")]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = asked(row, given=place.given)
    prompt = prompt_of(messages, place, optional_id(row, "group"))
    completion = completion_of(prompt, answer_of(row["response"], "response", messages))
    about: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
    records: list[Any] = [prompt, completion, *not_read(row, KNOWN, place)]
    said, scale = row["feedback"], row.get("scale")
    if scale not in (None, [0, 1], [1, 5]):
        raise RowError("`scale` must be [1, 5] or [0, 1]")
    number = float(said) if isinstance(said, (int, float)) and not isinstance(said, bool) else None
    if isinstance(said, str) and place.scales.says("feedback"):
        number = optional_number(row, "feedback")  # out of CSV
    label = thumb_of(said)
    if number is not None and scale is None and place.scales.beyond_one("feedback", number):
        rated = place.scales.rated("feedback", number, (1.0, 5.0))
        if rated is None:
            raise RowError(f"the scale of `feedback` is not known, got {number:g}; say it: --scale feedback=LOW:HIGH")
        common = made_of(row, place, "rating", completion.id, number)
        return [*records, *rated.notes, Rating(score=rated.score, scale=rated.scale, **about, **common)]
    if number == 1 and scale is None:
        raise RowError(
            'a `feedback` of 1 may be the lowest of five stars or a thumb up; add "scale": [1, 5] or [0, 1], or type '
            "--scale feedback=1:5"
        )
    if number is not None and scale == [1, 5]:
        if not 1 <= number <= 5:
            raise RowError(f"`feedback` must be from 1 to 5, got {number:g}")
        return [*records, Rating(score=number, **about, **made_of(row, place, "rating", completion.id, number))]
    if label is not None:
        return [*records, Thumb(label=label, **about, **made_of(row, place, "thumb", completion.id, label))]
    comment = text_of(said, "feedback").strip()
    if not comment:
        raise RowError("missing: `feedback`")
    common = made_of(row, place, "critique", completion.id, comment)
    return [*records, Critique(comment=comment, **about, **common)]
