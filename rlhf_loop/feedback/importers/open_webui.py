"""Open WebUI's feedback export: a list of `{"type": "rating", "data": {"rating", ...}, "meta", "snapshot": {"chat"}}`.

The message that was rated and what it answers are found in the snapshot of the chat. A rating of 1 or -1 becomes a
thumb; where answers of other models stood beside it (`sibling_model_ids`: the arena, or several models at once) it
becomes a preference over each of them. Reason, comment and tags become the comment, the rating in detail (1 to 10) a
rating.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    completion_of,
    mapping_of,
    messages_of,
    optional_number,
    optional_text,
    optional_time,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Preference, Rating, Thumb

RECOGNISES = 'Open WebUI: an export of feedback, {"type", "data": {"rating", "model_id"}, "meta", "snapshot"}'
REQUIRED = [("type", "data", "meta", "snapshot")]
LONGEST = 1000  # messages of a chat that are followed up to its beginning


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    data = row.get("data")
    return isinstance(data, Mapping) and "rating" in data and "model_id" in data and "meta" in row


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answers, and a thumb or preferences, with a rating where there is one."""
    data, meta = mapping_of(row.get("data"), "data"), mapping_of(row.get("meta"), "meta")
    sign = optional_number(data, "rating")
    if sign not in (1.0, -1.0):
        raise RowError(f"`data.rating` must be 1 or -1, got {str(data.get('rating'))[:60]!r}")
    history = _history(row)
    answer = _message(history, meta.get("message_id"), "meta.message_id")
    before = _before(history, answer)
    prompt = prompt_of(messages_of(before, "snapshot"), place)
    completion = completion_of(prompt, text_of(answer.get("content"), "content"))
    given: dict[str, Any] = {
        "external_id": optional_text(row, "id"),
        "created_at": optional_time(row, "created_at"),
        "comment": _comment(data),
    }
    who = row.get("user_id")
    records: list[Any] = [prompt, completion]
    for sibling in _siblings(history, answer, data):
        other = completion_of(prompt, text_of(sibling.get("content"), "content"))
        winner: Any = "a" if sign > 0 else "b"
        common = said_by(place, who, "preference", completion.id, other.id, winner, **given)
        blind = meta.get("arena") is True
        about: dict[str, Any] = {"prompt_id": prompt.id, "a_id": completion.id, "b_id": other.id}
        records += [other, Preference(winner=winner, blind=blind, **about, **common)]
    if len(records) == 2:
        label = sign > 0
        common = said_by(place, who, "thumb", completion.id, label, **given)
        records.append(Thumb(prompt_id=prompt.id, completion_id=completion.id, label=label, **common))
        if data.get("sibling_model_ids"):
            records.append(Note("answers of other models are not in the snapshot; the rating is kept as a thumb"))
    details = data.get("details")
    score = optional_number(details, "rating") if isinstance(details, Mapping) else None
    if score is not None:
        common = said_by(place, who, "rating", completion.id, score, **{**given, "comment": None})
        of_one: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
        records.append(Rating(score=score, scale=(1.0, 10.0), **of_one, **common))
    return records


def _history(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The messages of the chat, by id."""
    chat = mapping_of(row.get("snapshot") or {}, "snapshot").get("chat")
    inner = chat.get("chat", chat) if isinstance(chat, Mapping) else None
    history = inner.get("history") if isinstance(inner, Mapping) else None
    messages = history.get("messages") if isinstance(history, Mapping) else None
    if not isinstance(messages, Mapping) or not messages:
        raise RowError("`snapshot` holds no chat, so the texts are not known; export feedback with its snapshots")
    return messages


def _message(history: Mapping[str, Any], id: Any, name: str) -> Mapping[str, Any]:
    message = history.get(id) if isinstance(id, str) else None
    if not isinstance(message, Mapping):
        raise RowError(f"`{name}` names a message that is not in the snapshot")
    return message


def _before(history: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Any]:
    turns: list[Any] = []
    id = answer.get("parentId")
    while id is not None:
        message = _message(history, id, "parentId")
        turns.append({"role": message.get("role"), "content": message.get("content")})
        id = message.get("parentId")
        if len(turns) > LONGEST:
            raise RowError("the messages of the chat form a circle, or are more than a thousand")
    if not turns:
        raise RowError("the message that was rated answers nothing: it has no parent")
    return turns[::-1]


def _siblings(
    history: Mapping[str, Any], answer: Mapping[str, Any], data: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The answers of other models to the same message."""
    models = data.get("sibling_model_ids")
    if not isinstance(models, list) or not models:
        return []
    return [
        message
        for message in history.values()
        if isinstance(message, Mapping)
        and message is not answer
        and message.get("parentId") == answer.get("parentId")
        and message.get("role") == "assistant"
        and message.get("model") in models
        and message.get("content")
        and message.get("content") != answer.get("content")
    ]


def _comment(data: Mapping[str, Any]) -> str | None:
    parts = [optional_text(data, "reason"), optional_text(data, "comment")]
    tags = data.get("tags")
    if isinstance(tags, list):
        parts.append(", ".join(tag for tag in tags if isinstance(tag, str)) or None)
    return "; ".join(dict.fromkeys(part for part in parts if part)) or None
