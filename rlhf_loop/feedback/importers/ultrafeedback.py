"""UltraFeedback: `{"instruction", "completions": [{"response", "annotations": {...}, "overall_score", "critique"}]}`.

Each answer becomes a completion with a rating by the language model that judged it: the mean of its aspects' ratings
(1 to 5), or where there are none the overall score (1 to 10). Its critique becomes the rating's comment.

Binarised versions, Argilla's two and that of HuggingFaceH4, become preferences by the same judge. Their strength is how
far the scores lie apart; equal scores are a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import messages_of, prompt_before, turns_in
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    list_of,
    mapping_of,
    optional_id,
    optional_number,
    optional_text,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.records import Message, Preference, Rating

RECOGNISES = 'UltraFeedback: rows of {"instruction", "completions": [{"response", "annotations"}]}, or binarised'
REQUIRED = [
    ("instruction", "completions"),
    ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    ("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating"),
    ("instruction", "chosen_response", "rejected_response", "chosen_avg_rating", "rejected_avg_rating"),
]
SCALES = ((1.0, 10.0), (1.0, 5.0), (1.0, 5.0))
"""Of the scores of the binarised versions, in the order of `REQUIRED`."""
JUDGE = "gpt-4"  # who annotated the data set


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    completions = row.get("completions")
    first = completions[0] if isinstance(completions, list) and completions else None
    if "instruction" in row and isinstance(first, Mapping) and "response" in first:
        return True
    return any(all(key in row for key in keys) for keys in REQUIRED[1:])


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, and of each answer its completion and rating; of a binarised row a preference."""
    if "completions" not in row:
        return _pair(row, place)
    prompt = prompt_of((Message(role="user", content=text_of(row.get("instruction"), "instruction")),), place)
    records: list[Any] = [prompt]
    for number, value in enumerate(list_of(row.get("completions"), "completions")):
        name = f"completions[{number}]"
        answer = mapping_of(value, name)
        completion = completion_of(prompt, text_of(answer.get("response"), f"{name}.response"))
        records.append(completion)
        if answer.get("custom_system_prompt"):
            records.append(Note("the system prompt that an answer was sampled with is left out"))
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


def _pair(row: Mapping[str, Any], place: Place) -> list[Any]:
    keys, scale = next(
        ((keys, scale) for keys, scale in zip(REQUIRED[1:], SCALES, strict=True) if keys[1] in row and keys[3] in row),
        (REQUIRED[1], SCALES[0]),
    )
    messages, chosen = _exchange(row, keys[0], keys[1])
    others, rejected = _exchange(row, keys[0], keys[2])
    if messages != others:
        raise RowError(f"`{keys[1]}` and `{keys[2]}` differ before the last answer, so they answer no common prompt")
    prompt = prompt_of(messages, place)
    a, b = completion_of(prompt, chosen), completion_of(prompt, rejected)
    scores = optional_number(row, keys[3]), optional_number(row, keys[4])
    notes: list[Any] = []
    winner: Any = "a"
    strength = None
    if None not in scores:
        gap = (scores[0] - scores[1]) / (scale[1] - scale[0])  # type: ignore[operator]
        if gap == 0:
            winner = "tie"
        elif 0 < gap <= 1:
            strength = gap
        else:
            notes.append(Note("the scores are not those of a chosen and a rejected answer; the verdict is kept alone"))
    about: dict[str, Any] = {"prompt_id": prompt.id, "a_id": a.id, "b_id": b.id}
    external = optional_id(row, "prompt_id")
    common = said_by(place, JUDGE, "preference", a.id, b.id, winner, strength, kind="LLM", external_id=external)
    return [prompt, a, b, Preference(winner=winner, strength=strength, **about, **common), *notes]


def _exchange(row: Mapping[str, Any], prompt: str, answer: str) -> tuple[tuple[Message, ...], str]:
    """What was asked, and one answer: a text, or a conversation that repeats what was asked."""
    value = row.get(answer)
    turns = turns_in(value, answer)
    if turns is not None:
        return prompt_before(turns, answer)
    return messages_of(row.get(prompt), prompt), text_of(value, answer)


def _score(answer: Mapping[str, Any], name: str) -> tuple[float | None, tuple[float, float]]:
    ratings = []
    for aspect, value in mapping_of(answer.get("annotations") or {}, f"{name}.annotations").items():
        values = value if isinstance(value, list) else [value]
        for one in filter(None, values):  # Arrow and Parquet hold an aspect that was not judged as null
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
