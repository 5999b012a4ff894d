"""What the formats have in common: checking the fields of a row, and making records of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Annotator, Completion, Message, Prompt, stable_id

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row stands, and who gave the feedback in it if it does not say."""

    file: str
    line: int
    annotator: Annotator

    @property
    def source(self) -> str:
        """`file:line`, as records carry it."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Note:
    """Something of a row that is left out though the row is taken; counted by text."""

    text: str


def text_of(value: Any, name: str) -> str:
    """`value` when it is text that can be stored and shown; otherwise a `RowError`."""
    if not isinstance(value, str):
        raise RowError(f"`{name}` must be text, got {_shown(value)}" if value is not None else f"`{name}` is missing")
    if "\0" in value:
        raise RowError(f"`{name}` holds a NUL character, so the file is probably not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"`{name}` holds half of a surrogate pair: broken escapes like \\ud83d") from None
    return value


def optional_text(row: Mapping[str, Any], name: str) -> str | None:
    """A text, or None where the key is absent, null or empty; numbers (ids, often) become text."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return text_of(value, name) or None if value is not None else None


def optional_number(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number, or None where the key is absent or null; text that is a number (CSV) counts."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(f"`{name}` must be a number, got {_shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowError(f"`{name}` must be a finite number, got {_shown(value)}")
    return float(value)


def messages_of(value: Any, name: str) -> tuple[Message, ...]:
    """A conversation: text becomes one turn of the user; a list must hold `{"role", "content"}`."""
    if not isinstance(value, list):
        return (Message(role="user", content=text_of(value, name)),)
    if not value:
        raise RowError(f"`{name}` is an empty conversation")
    return tuple(_message(turn, f"{name}[{number}]") for number, turn in enumerate(value))


def answer_of(value: Any, name: str, prompt: Sequence[Message] = ()) -> str:
    """The text of one answer: text, or a conversation of one assistant's turn (after `prompt`, if repeated)."""
    if not isinstance(value, list):
        return text_of(value, name)
    turns = messages_of(value, name)
    if len(turns) > len(prompt) and turns[: len(prompt)] == tuple(prompt):
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise RowError(f"`{name}` must be one turn of the assistant after the prompt, got: {roles}")
    return turns[0]["content"]


def optional_time(row: Mapping[str, Any], name: str) -> float:
    """Seconds since the epoch: from a number (seconds, or milliseconds), or an ISO 8601 text; 0 where it is absent."""
    value = row.get(name)
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise RowError(f"`{name}` must be a time such as 2026-01-31T12:00:00Z, got {_shown(value)}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    number = optional_number(row, name) or 0.0
    return number / 1000 if number > 1e11 else number


def annotator_of(row: Mapping[str, Any], place: Place) -> Annotator:
    """Who gave the feedback: `annotator` as an id or `{"id", "kind"}`; by default the file's."""
    value = row.get("annotator")
    if value is None or value == "":
        return place.annotator
    if isinstance(value, dict):
        kind = value.get("kind", "HUMAN")
        if kind not in ("HUMAN", "LLM", "CODE"):
            raise RowError(f"`annotator.kind` must be HUMAN, LLM or CODE, got {_shown(kind)}")
        return Annotator(id=text_of(value.get("id"), "annotator.id"), kind=kind)
    return Annotator(id=optional_text(row, "annotator") or place.annotator.id)


def made_of(row: Mapping[str, Any], place: Place, *parts: Any) -> dict[str, Any]:
    """The fields that all feedback has: an id made of what the row says (not of where it stands), and the rest."""
    annotator = annotator_of(row, place)
    named = None if annotator == place.annotator and annotator.id.startswith("import:") else annotator.id
    external_id = optional_text(row, "id")
    return {
        "id": stable_id("import", external_id, named, *parts),
        "annotator": annotator,
        "created_at": optional_number(row, "created_at") or 0.0 if "created_at" in row else 0.0,
        "source": place.source,
        "external_id": external_id,
    }


def prompt_of(messages: tuple[Message, ...], place: Place, group: str | None = None) -> Prompt:
    """A prompt whose id follows from its text and its group."""
    id = stable_id("prompt", messages, group)
    return Prompt(id=id, messages=messages, group=group or id, source=place.file)


def completion_of(prompt: Prompt, text: str) -> Completion:
    """An imported answer; the same text for the same prompt is the same completion."""
    id = stable_id("import", prompt.id, text)
    return Completion(id=id, prompt_id=prompt.id, text=text, policy="import", round=0)


def mapping_of(value: Any, name: str) -> Mapping[str, Any]:
    """`value` when it is an object; otherwise a `RowError`."""
    if not isinstance(value, Mapping):
        raise RowError(f"`{name}` must be an object" + ("" if value is None else f", got {_shown(value)}"))
    return value


def list_of(value: Any, name: str) -> list[Any]:
    """`value` when it is a list; otherwise a `RowError`."""
    if not isinstance(value, list):
        raise RowError(f"`{name}` must be a list" + ("" if value is None else f", got {_shown(value)}"))
    return value


def said_by(place: Place, who: Any, *parts: Any, kind: str = "HUMAN", **given: Any) -> dict[str, Any]:
    """The fields that feedback of a tool's export has: its id is made of `who` said it and of `parts`.

    `who`: the tool's name or number for the person; None or empty: the annotator of the file.
    """
    name = None if who is None or who == "" else text_of(who if isinstance(who, str) else str(who), "annotator")
    if name is None and not place.annotator.id.startswith("import:"):
        name = place.annotator.id
    annotator = Annotator(id=name, kind=kind) if name else place.annotator  # type: ignore[arg-type]
    id = stable_id("import", given.get("external_id"), name, *parts)
    return {"id": id, "annotator": annotator, "source": place.source, **given}


def prompt_before(turns: Sequence[Message], name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation that ends with the assistant's turn, as the prompt and that answer."""
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError(f"`{name}` must end with an answer of the assistant after a prompt")
    return tuple(turns[:-1]), turns[-1]["content"]


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"`{name}` must be a message with role and content, got {_shown(turn)}")
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(f"`{name}.role` must be one of {', '.join(ROLES)}, got {_shown(role)}")
    content = turn.get("content")
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, Mapping) and p.get("type", "text") == "text"]
        if len(parts) != len(content) or not parts:
            raise RowError(f"`{name}.content` holds parts that are not text (images, audio), which is not supported")
        content = "".join(text_of(part, f"{name}.content") for part in parts)
    return Message(role=role, content=text_of(content, f"{name}.content"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
