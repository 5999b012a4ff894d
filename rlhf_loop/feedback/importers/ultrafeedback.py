"""UltraFeedback: `{"instruction", "completions": [{"response", "annotations": {...}, "overall_score", "critique"}]}`.

Each answer becomes a completion with a rating by the language model that judged it: the mean of its aspects' ratings
(1 to 5), or where there are none the overall score (1 to 10). Its critique becomes the rating's comment.
Binarised versions are rows of `prompt, chosen, rejected`, which `trl` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    completion_of,
    list_of,
    mapping_of,
    optional_number,
    optional_text,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Message, Rating

RECOGNISES = 'UltraFeedback: rows of {"instruction", "completions": [{"response", "annotations"}]}'
REQUIRED = [("instruction", "completions")]
JUDGE = "gpt-4"  # who annotated the data set


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    completions = row.get("completions")
    first = completions[0] if isinstance(completions, list) and completions else None
    return "instruction" in row and isinstance(first, Mapping) and "response" in first


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, and of each answer its completion and rating."""
    prompt = prompt_of((Message(role="user", content=text_of(row.get("instruction"), "instruction")),), place)
    records: list[Any] = [prompt]
    for number, value in enumerate(list_of(row.get("completions"), "completions")):
        name = f"completions[{number}]"
        answer = mapping_of(value, name)
        completion = completion_of(prompt, text_of(answer.get("response"), f"{name}.response"))
        records.append(completion)
        score, scale = _score(answer, name)
        if score is None:
            records.append(Note("a completion has no rating; it is kept without"))
            continue
        comment = optional_text(answer, "critique")
        common = said_by(place, JUDGE, "rating", completion.id, score, scale, comment, kind="LLM")
        records.append(
            Rating(
                prompt_id=prompt.id, completion_id=completion.id, score=score, scale=scale, comment=comment, **common
            )
        )
    return records


def _score(answer: Mapping[str, Any], name: str) -> tuple[float | None, tuple[float, float]]:
    ratings = []
    for aspect, value in mapping_of(answer.get("annotations") or {}, f"{name}.annotations").items():
        values = value if isinstance(value, list) else [value]
        for one in values:
            rating = _number(mapping_of(one, f"{name}.annotations.{aspect}"), "Rating")
            if rating is not None:
                ratings.append(rating)
    if ratings:
        mean = fmean(ratings)
        if not 1 <= mean <= 5:
            raise RowError(f"`{name}.annotations` must hold ratings from 1 to 5, got {mean:g} on average")
        return mean, (1.0, 5.0)
    overall = _number(answer, "overall_score")
    if overall is not None and not 0 <= overall <= 10:
        raise RowError(f"`{name}.overall_score` must be from 0 to 10, got {overall:g}")
    return overall, (1.0, 10.0)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    return None if row.get(key) in ("N/A", "", None) else optional_number(row, key)
