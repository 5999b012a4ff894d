"""What the value of a named metric says of an answer: how traces hold feedback (MLflow, Langfuse, Phoenix)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note
from rlhf_loop.feedback.importers.fields import Place, said_by, text_of
from rlhf_loop.feedback.importers.scales import Scale
from rlhf_loop.feedback.importers.words import speaks_of_good, thumb_named, thumb_of
from rlhf_loop.records import Critique, Rating, Thumb


def number_in(value: Any) -> float | None:
    """The finite number that a value is, as text too; None for true, false and anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def said_by_metric(
    place: Place,
    name: str,
    value: Any,
    comment: str | None,
    who: Any,
    about: Mapping[str, Any],
    given: Mapping[str, Any],
    usual: Scale | None = None,
    critique: bool = True,
) -> list[Any]:
    """A thumb, a rating or a critique of an answer, by a metric's name and value.

    A value that says neither good nor bad (`is_toxic`, `length`) is left out with a note, unless a scale was given for
    its name; a comment beside it stays, as a critique. `usual`: the tool's own scale of numbers. `critique`: whether a
    text is one.
    """
    completion = about["completion_id"]
    number = number_in(value)
    if number is not None:
        known = place.scales.says(name) or speaks_of_good(name)
        rated = place.scales.rated(name, number, usual) if known else None
        if rated is not None:
            common = said_by(place, who, "rating", completion, number, name, **given)
            rating = Rating(score=rated.score, scale=rated.scale, comment=comment, **about, **common)
            return [rating, *rated.notes]
        left_out = f"the scale of {name[:40]} is not known" if known else _neither(name)
    else:
        label = thumb_named(name, value)
        if label is None and place.scales.says(name) and thumb_of(value) is not None:
            label = place.scales.label(name, bool(thumb_of(value)))
        if label is not None:
            common = said_by(place, who, "thumb", completion, label, name, **given)
            return [Thumb(label=label, comment=comment, **about, **common)]
        if critique and isinstance(value, str) and thumb_of(value) is None and " " in value.strip():
            comment = "\n".join(text for text in (text_of(value, name), comment) if text)
            value = None
        left_out = _neither(name)
    if comment and comment.strip():
        common = said_by(place, who, "critique", completion, comment, name, **given)
        critiques: list[Any] = [Critique(comment=comment, **about, **common)]
        return critiques if value is None else [*critiques, Note(f"the value of {name[:40]} is left out: {left_out}")]
    return [Note(left_out)]


def _neither(name: str) -> str:
    return f"{name[:40]} says neither good nor bad (say what is good: --scale NAME=WORST:BEST)"
