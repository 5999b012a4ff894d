"""The JSON Lines of feedback tutorials: `{"input", "response", "feedback"}`.

A text in `feedback` becomes a critique of the response; a word such as `good` or `bad`, true, false, 0 or -1 a thumb; a
number from 2 to 5 a rating. A 1 is the lowest of five stars in one file and praise in the next, so it needs a `scale`
beside it: `[1, 5]`, or `[0, 1]` for a thumb.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Place,
    answer_of,
    completion_of,
    made_of,
    messages_of,
    optional_text,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Rating, Thumb

RECOGNISES = 'feedback tutorials: rows of {"input", "response", "feedback"}'
REQUIRED = [("input", "response", "feedback")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return all(key in row for key in REQUIRED[0])


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the completion, and a critique, a thumb or a rating."""
    missing = [key for key in REQUIRED[0] if row.get(key) in (None, "")]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = messages_of(row["input"], "input")
    prompt = prompt_of(messages, place, optional_text(row, "group"))
    completion = completion_of(prompt, answer_of(row["response"], "response", messages))
    about: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
    said, scale = row["feedback"], row.get("scale")
    if scale not in (None, [0, 1], [1, 5]):
        raise RowError("`scale` must be [1, 5] or [0, 1]")
    number = float(said) if isinstance(said, (int, float)) and not isinstance(said, bool) else None
    if number == 1 and scale is None:
        raise RowError('a `feedback` of 1 may be the lowest of five stars or a thumb up; add "scale": [1, 5] or [0, 1]')
    label = thumb_of(said)
    if number is not None and 1 <= number <= 5 and scale != [0, 1]:
        score = number
        return [prompt, completion, Rating(score=score, **about, **made_of(row, place, "rating", completion.id, score))]
    if label is not None:
        return [prompt, completion, Thumb(label=label, **about, **made_of(row, place, "thumb", completion.id, label))]
    comment = text_of(said, "feedback").strip()
    if not comment:
        raise RowError("missing: `feedback`")
    common = made_of(row, place, "critique", completion.id, comment)
    return [prompt, completion, Critique(comment=comment, **about, **common)]
