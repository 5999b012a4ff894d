"""Chat logs in OpenAI's shape, with feedback where there is some.

    {"messages": [..., {"role": "assistant", "content": "..."}], "feedback": "up", "comment": "...", "user": "u1"}
    {"request": {"messages": [...]}, "response": {"choices": [{"message": {...}}]}, "rating": 4}
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

`feedback` (or `rating`, `thumb`, `label`, `score`) may be a word for good or bad, a number from 1 to 5, a text, or an
object that holds these; a text is a critique. `correction` is the answer as it should have been. The last form is that
of OpenAI's preference fine-tuning. A log without feedback gives the answer alone, for the loop to ask about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers import pairs
from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    answer_of,
    completion_of,
    list_of,
    mapping_of,
    messages_of,
    optional_text,
    optional_time,
    prompt_before,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Edit, Message, Rating, Thumb

RECOGNISES = 'chat logs: rows of {"messages"} or {"request", "response"}, with `feedback`, `rating` or `comment`'
REQUIRED = [("messages",), ("request", "response"), ("input", "preferred_output", "non_preferred_output")]
VERDICTS = ("feedback", "rating", "thumb", "thumbs", "label", "score")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if isinstance(row.get("messages"), list) or all(key in row for key in REQUIRED[2]):
        return True
    request = row.get("request")
    return isinstance(request, Mapping) and "messages" in request and "response" in row


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what is said of it; of OpenAI's preference rows a pair."""
    if "preferred_output" in row:
        messages = turns_of(row.get("input"), "input", "user")
        return pairs.pair(row, place, messages, row["preferred_output"], row.get("non_preferred_output"))
    messages, text = _exchange(row)
    prompt = prompt_of(messages, place, optional_text(row, "group"))
    completion = completion_of(prompt, text)
    records: list[Any] = [prompt, completion]
    said = _said(row, place, prompt.id, completion.id)
    return records + (said or [Note("an answer has no feedback; it is kept without")])


def turns_of(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """A conversation out of what tools log as input or output: messages, an object with them, one of OpenAI's answers,
    or text, which is a turn of `role`."""
    if isinstance(value, Mapping):
        if "messages" in value:
            return messages_of(list_of(value["messages"], f"{name}.messages"), f"{name}.messages")
        choices = value.get("choices")
        if isinstance(choices, list) and choices:
            message = mapping_of(choices[0], f"{name}.choices").get("message")
            return messages_of([message], f"{name}.choices[0].message")
        if "role" in value and "content" in value:
            return messages_of([value], name)
        texts = [inner for inner in value.values() if isinstance(inner, str)]
        if len(value) == 1 and texts:
            return (Message(role=role, content=text_of(texts[0], name)),)
        for key in ("prompt", "question", "query", "input", "text", "content", "answer", "output", "response"):
            if isinstance(value.get(key), str):
                return (Message(role=role, content=text_of(value[key], f"{name}.{key}")),)
        raise RowError(f"`{name}` holds neither messages nor one text: its keys are {', '.join(list(value)[:8])}")
    if isinstance(value, list):
        return messages_of(value, name)
    return (Message(role=role, content=text_of(value, name)),)


def _exchange(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    if "messages" in row:
        return prompt_before(messages_of(list_of(row["messages"], "messages"), "messages"), "messages")
    messages = turns_of(row.get("request"), "request", "user")
    answers = turns_of(row.get("response"), "response", "assistant")
    return messages, answer_of([dict(turn) for turn in answers], "response")


def _said(row: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    values = dict(row)
    if isinstance(row.get("feedback"), Mapping):
        del values["feedback"]
        values |= dict(row["feedback"])
    who = next((values[key] for key in ("annotator", "user", "user_id") if values.get(key)), None)
    if isinstance(who, Mapping):
        who = who.get("id")
    given: dict[str, Any] = {
        "external_id": optional_text(row, "id"),
        "created_at": optional_time(row, "created_at" if "created_at" in row else "created"),
    }
    about: dict[str, Any] = {"prompt_id": prompt_id, "completion_id": completion_id}
    comment = optional_text(values, "comment") or optional_text(values, "critique")
    records: list[Any] = []
    for name in VERDICTS:
        value = values.get(name)
        if value is None or value == "":
            continue
        label = thumb_of(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and (value > 1 or name in ("rating", "score")):  # type: ignore[operator]
            if not 1 <= value <= 5:  # type: ignore[operator]
                raise RowError(f"`{name}` must be from 1 to 5, got {value}")
            common = said_by(place, who, "rating", completion_id, float(value), **given)  # type: ignore[arg-type]
            records.append(Rating(score=float(value), comment=comment, **about, **common))  # type: ignore[arg-type]
        elif label is not None:
            common = said_by(place, who, "thumb", completion_id, label, **given)
            records.append(Thumb(label=label, comment=comment, **about, **common))
        elif isinstance(value, str):
            comment = "\n".join(text for text in (comment, text_of(value, name).strip()) if text) or None
        else:
            raise RowError(f"`{name}` must be a word, a number from 1 to 5, or a text")
    if not records and comment:
        common = said_by(place, who, "critique", completion_id, comment, **given)
        records.append(Critique(comment=comment, **about, **common))
    correction = optional_text(values, "correction") or optional_text(values, "edited")
    if correction:
        common = said_by(place, who, "edit", completion_id, correction, **given)
        records.append(Edit(edited_completion=correction, **about, **common))
    return records
