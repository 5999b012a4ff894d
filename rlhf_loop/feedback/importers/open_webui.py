"""Open WebUI: its export of feedback, and its export of chats, whose messages hold what people said of them.

    {"type": "rating", "data": {"rating", ...}, "meta", "snapshot": {"chat"}}
    {"id", "user_id", "title", "chat": {"history": {"messages": {ID: {"annotation": {"rating", ...}, ...}}}}}

The message that was rated and what it answers are found in the snapshot of the chat; the chat's own system prompt comes
first. A rating of 1 or -1 becomes a thumb; where answers of other models stood beside it (`sibling_model_ids`: the
arena, or several models at once) it becomes a preference over each of them, and a rating of 0 a tie. A sibling that was
rated alike is no rival. Reason, comment and tags become the comment, the rating in detail (1 to 10) a rating. What a
model thought and which tools it called, which Open WebUI keeps in the text, is left out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import messages_of
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    id_of,
    mapping_of,
    optional_id,
    optional_number,
    optional_text,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.records import Preference, Rating, Thumb

RECOGNISES = (
    'Open WebUI: an export of feedback, {"type", "data": {"rating", "model_id"}, "meta", "snapshot"}, or of chats, '
    '{"title", "chat": {"history"}}'
)
REQUIRED = [("type", "data", "meta", "snapshot"), ("title", "chat")]
LONGEST = 1000  # messages of a chat that are followed up to its beginning

_STEPS = re.compile(r'<details\s[^>]*type="(?:reasoning|code_interpreter|tool_calls)"[^>]*>.*?</details>\s*', re.DOTALL)
"""What Open WebUI writes into an answer's text beside what the model answered."""


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    data = row.get("data")
    if isinstance(data, Mapping) and "rating" in data and "model_id" in data and "meta" in row:
        return True
    return _history(row) is not None


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answers, and a thumb or preferences, with a rating where there is one; of a chat all of them."""
    if "data" not in row and _history(row) is not None:
        return _of_a_chat(row, place)
    data, meta = mapping_of(row.get("data"), "data"), mapping_of(row.get("meta"), "meta")
    chat = _chat(row)
    answer = _message(chat["history"]["messages"], meta.get("message_id"), "meta.message_id")
    given: dict[str, Any] = {
        "external_id": optional_id(row, "id"),
        "created_at": time_in(row, "updated_at", "created_at"),
    }
    blind = meta.get("arena") is True
    return _rated(chat, answer, data, place, row.get("user_id"), blind, given)


def _of_a_chat(row: Mapping[str, Any], place: Place) -> list[Any]:
    """What people said of the messages of a chat, in the messages."""
    chat = _history(row)
    assert chat is not None, "this is no chat"
    history = chat["history"]["messages"]
    records: list[Any] = []
    rated = 0
    for id, message in history.items():
        annotation = message.get("annotation") if isinstance(message, Mapping) else None
        if not isinstance(annotation, Mapping) or annotation.get("rating") in (None, ""):
            continue
        rated += 1
        given: dict[str, Any] = {
            "external_id": optional_id(message, "feedbackId") or id_of(id, "id"),
            "created_at": time_in(message, "timestamp") or time_in(row, "updated_at", "created_at"),
        }
        data = {"sibling_model_ids": _other_models(history, message), **annotation}
        try:
            records += _rated(chat, message, data, place, row.get("user_id"), False, given)
        except RowError as error:
            records.append(Note(f"a rating in a chat is left out: {error}"))
    if not rated:
        records.append(Note("a chat holds no rating; its answers are not taken"))
    return records


def _other_models(history: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Any]:
    """The other models that answered the same message, which people saw side by side."""
    return [
        message.get("model")
        for message in history.values()
        if isinstance(message, Mapping)
        and message is not answer
        and message.get("parentId") == answer.get("parentId")
        and message.get("role") == "assistant"
        and message.get("model") not in (None, answer.get("model"))
    ]


def _rated(
    chat: Mapping[str, Any],
    answer: Mapping[str, Any],
    data: Mapping[str, Any],
    place: Place,
    who: Any,
    blind: bool,
    given: dict[str, Any],
) -> list[Any]:
    """The records of one message's rating."""
    history = chat["history"]["messages"]
    sign = optional_number(data, "rating")
    if sign is None or sign not in (1.0, 0.0, -1.0):
        raise RowError(f"`data.rating` must be 1, 0 or -1, got {str(data.get('rating'))[:60]!r}")
    branch = _branch(history, answer)
    prompt = prompt_of(messages_of([*_system(chat), *map(_turn, branch)], "snapshot"), place)
    completion = completion_of(prompt, _text(answer))
    given = {**given, "comment": _comment(data)}
    said: list[Any] = []
    for sibling in _siblings(history, answer, data):
        other = completion_of(prompt, _text(sibling))
        if other.id == completion.id:
            continue
        winner: Any = "a" if sign > 0 else "b" if sign < 0 else "tie"
        common = said_by(place, who, "preference", completion.id, other.id, winner, **given)
        about: dict[str, Any] = {"prompt_id": prompt.id, "a_id": completion.id, "b_id": other.id}
        said += [other, Preference(winner=winner, blind=blind, **about, **common)]
    if not said and sign == 0:
        raise RowError("`data.rating` is 0, a draw, but no other answer is in the snapshot")
    if not said:
        common = said_by(place, who, "thumb", completion.id, sign > 0, **given)
        said.append(Thumb(prompt_id=prompt.id, completion_id=completion.id, label=sign > 0, **common))
        if data.get("sibling_model_ids"):
            said.append(Note("no rival among the other answers in the snapshot; the rating is kept as a thumb"))
    records: list[Any] = [prompt, completion, *said, *_left_out([*branch, answer])]
    details = data.get("details")
    score = optional_number(details, "rating") if isinstance(details, Mapping) else None
    if score is not None:
        common = said_by(place, who, "rating", completion.id, score, **{**given, "comment": None})
        of_one: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
        records.append(Rating(score=score, scale=(1.0, 10.0), **of_one, **common))
    return records


def _history(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The chat of a row of the export of chats, or of a chat by itself; None where it is none."""
    chat = row.get("chat", row)
    chat = chat.get("chat", chat) if isinstance(chat, Mapping) else None
    history = chat.get("history") if isinstance(chat, Mapping) else None
    messages = history.get("messages") if isinstance(history, Mapping) else None
    return chat if isinstance(messages, Mapping) and messages else None


def _chat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The chat of the snapshot, with its messages by id in `history.messages`."""
    chat = mapping_of(row.get("snapshot") or {}, "snapshot").get("chat")
    inner = chat.get("chat", chat) if isinstance(chat, Mapping) else None
    history = inner.get("history") if isinstance(inner, Mapping) else None
    messages = history.get("messages") if isinstance(history, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(messages, Mapping) or not messages:
        raise RowError("`snapshot` holds no chat, so the texts are not known; export feedback with its snapshots")
    return inner


def _system(chat: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system prompt that was set for this chat; that of a user's settings or of a model is not in the export."""
    params = chat.get("params")
    system = (params.get("system") if isinstance(params, Mapping) else None) or chat.get("system")
    return [{"role": "system", "content": system}] if system else []


def _message(history: Mapping[str, Any], id: Any, name: str) -> Mapping[str, Any]:
    message = history.get(id) if isinstance(id, str) else None
    if not isinstance(message, Mapping):
        raise RowError(f"`{name}` names a message that is not in the snapshot")
    return message


def _branch(history: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What led to the answer, from the chat's beginning."""
    branch: list[Mapping[str, Any]] = []
    id = answer.get("parentId")
    while id is not None:
        branch.append(_message(history, id, "parentId"))
        id = branch[-1].get("parentId")
        if len(branch) > LONGEST:
            raise RowError("the messages of the chat form a circle, or are more than a thousand")
    if not branch:
        raise RowError("the message that was rated answers nothing: it has no parent")
    if any(str(file.get("type")) == "image" for message in branch for file in _files(message)):
        raise RowError("the chat holds images, which is not supported")
    return branch[::-1]


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role"), "content": _text(message)}


def _text(message: Mapping[str, Any]) -> str:
    text = text_of(message.get("content"), "content")
    return _STEPS.sub("", text).strip() if "<details" in text else text


def _files(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    files = message.get("files")
    return (file for file in files if isinstance(file, Mapping)) if isinstance(files, list) else iter(())


def _left_out(messages: list[Mapping[str, Any]]) -> list[Note]:
    notes = []
    if any(_STEPS.search(str(message.get("content"))) for message in messages):
        notes.append(Note("thoughts and calls of tools are left out of the answers"))
    if any(True for message in messages for _ in _files(message)):
        notes.append(Note("files of a chat are left out of its prompt"))
    return notes


def _siblings(
    history: Mapping[str, Any], answer: Mapping[str, Any], data: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The other answers to the same message, but for those that were rated alike."""
    models = data.get("sibling_model_ids")
    if not isinstance(models, list) or not models:
        return []
    rating = optional_number(data, "rating")
    return [
        message
        for message in history.values()
        if isinstance(message, Mapping)
        and message is not answer
        and message.get("parentId") == answer.get("parentId")
        and message.get("role") == "assistant"
        and (message.get("selectedModelId") or message.get("model")) in models  # the first: behind an arena's name
        and message.get("content")
        and (rating == 0 or _own_rating(message) != rating)
    ]


def _own_rating(message: Mapping[str, Any]) -> float | None:
    annotation = message.get("annotation")
    return optional_number(annotation, "rating") if isinstance(annotation, Mapping) else None


def _comment(data: Mapping[str, Any]) -> str | None:
    parts = [optional_text(data, "reason"), optional_text(data, "comment")]
    tags = data.get("tags")
    if isinstance(tags, list):
        parts.append(", ".join(tag for tag in tags if isinstance(tag, str)) or None)
    return "; ".join(dict.fromkeys(part for part in parts if part)) or None
