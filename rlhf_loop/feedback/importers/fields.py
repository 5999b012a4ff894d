"""What the formats have in common: checking the fields of a row, and making records of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.files.rows import shown
from rlhf_loop.feedback.importers import times
from rlhf_loop.feedback.importers.scales import Scales
from rlhf_loop.records import Annotator, Completion, Message, Prompt, stable_id

_TEMPLATE = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*(?:\[INST\]|<<SYS>>|<\|(?:im_start|start_header_id|user|system|"
    r"assistant|prompter)\|>|<start_of_turn>|<\|START_OF_TURN_TOKEN\|>|<\uff5cUser\uff5c>)"
)
"""How a prompt begins that went through a chat template."""
_WHOLE = re.compile(r"-?\d+\.0+")  # how tables write whole numbers in a column with gaps


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row stands, who gave the feedback in it if it does not say, and what else is known of its source."""

    file: str
    line: int
    annotator: Annotator
    scales: Scales = field(default_factory=Scales)
    columns: Mapping[str, str] = field(default_factory=dict)  # what the user said: a format's name -> the file's
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by id: rows that hold what was judged

    @property
    def source(self) -> str:
        """`file:line`, as records carry it."""
        return f"{self.file}:{self.line}"

    @property
    def given(self) -> frozenset[str]:
        """The names that the user gave to columns."""
        return frozenset(self.columns)

    @property
    def sources(self) -> frozenset[str]:
        """The columns that the user gave names to, or parts of them."""
        return frozenset(re.split(r"[.\[]", own)[0] for own in self.columns.values())


def text_of(value: Any, name: str) -> str:
    """`value` when it is text that can be stored and shown; otherwise a `RowError`."""
    if not isinstance(value, str):
        raise RowError(f"`{name}` must be text, got {shown(value)}" if value is not None else f"`{name}` is missing")
    if "\0" in value:
        raise RowError(f"`{name}` holds a NUL character, so the file is probably not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f"`{name}` holds half of a surrogate pair: broken escapes like \\ud83d") from None
    return value


def optional_text(row: Mapping[str, Any], name: str) -> str | None:
    """A text, or None where the key is absent, null or empty; numbers become text."""
    value = row.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return text_of(value, name) or None if value is not None else None


def optional_id(row: Mapping[str, Any], name: str) -> str | None:
    """What stands for somebody or something: text or a number, and 3, 3.0 and "3.0" are all "3"; None where it is
    absent, null or empty."""
    return id_of(row.get(name), name)


def id_of(value: Any, name: str) -> str | None:
    """See `optional_id`."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (int, float, Decimal, UUID)) and not isinstance(value, bool):
        value = str(value)
    text = text_of(value, name).strip()
    return (text.partition(".")[0] if _WHOLE.fullmatch(text) else text) or None


def optional_number(row: Mapping[str, Any], name: str) -> float | None:
    """A finite number, or None where the key is absent or null; text that is a number (CSV) counts."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool):
        try:
            value = float(value)
        except (ValueError, OverflowError):
            raise RowError(f"`{name}` must be a number, got {shown(value)}") from None
    if not isinstance(value, float) or not math.isfinite(value):
        raise RowError(f"`{name}` must be a finite number, got {shown(value)}")
    return value


def annotator_of(row: Mapping[str, Any], place: Place) -> Annotator:
    """Who gave the feedback: `annotator` as an id or `{"id", "kind"}`; by default the file's."""
    value = row.get("annotator")
    if value is None or value == "":
        return place.annotator
    if isinstance(value, dict):
        kind = value.get("kind", "HUMAN")
        if kind not in ("HUMAN", "LLM", "CODE"):
            raise RowError(f"`annotator.kind` must be HUMAN, LLM or CODE, got {shown(kind)}")
        return Annotator(id=id_of(value.get("id"), "annotator.id") or place.annotator.id, kind=kind)
    return Annotator(id=optional_id(row, "annotator") or place.annotator.id)


def made_of(row: Mapping[str, Any], place: Place, *parts: Any) -> dict[str, Any]:
    """The fields that all feedback has: an id made of what the row says (not of where it stands), and the rest."""
    annotator = annotator_of(row, place)
    named = None if annotator == place.annotator and annotator.id.startswith("import:") else annotator.id
    external_id = optional_id(row, "id")
    return {
        "id": stable_id("import", external_id, named, *parts),
        "annotator": annotator,
        "created_at": times.time_in(row, *times.NAMES),
        "source": place.source,
        "external_id": external_id,
    }


def prompt_of(messages: tuple[Message, ...], place: Place, group: str | None = None) -> Prompt:
    """A prompt whose id follows from its text and its group; a `RowError` where it is empty."""
    if not any(turn["content"].strip() for turn in messages if turn["role"] not in ("system", "developer")):
        raise RowError("the prompt is empty, so nothing was asked")
    mark = next((found for turn in messages if (found := _TEMPLATE.match(turn["content"]))), None)
    if mark is not None:
        raise RowError(
            f"the prompt is written in a chat template ({mark.group().strip()}), which would become words of the user; "
            "give it as messages, or without the template"
        )
    id = stable_id("prompt", messages, group)
    return Prompt(id=id, messages=messages, group=group or id, source=place.file)


def completion_of(prompt: Prompt, text: str) -> Completion:
    """An imported answer; the same text for the same prompt is the same completion."""
    id = stable_id("import", prompt.id, text)
    return Completion(id=id, prompt_id=prompt.id, text=text, policy="import", round=0)


def mapping_of(value: Any, name: str) -> Mapping[str, Any]:
    """`value` when it is an object; otherwise a `RowError`."""
    if not isinstance(value, Mapping):
        raise RowError(f"`{name}` must be an object" + ("" if value is None else f", got {shown(value)}"))
    return value


def list_of(value: Any, name: str) -> list[Any]:
    """`value` when it is a list; otherwise a `RowError`."""
    if not isinstance(value, list):
        raise RowError(f"`{name}` must be a list" + ("" if value is None else f", got {shown(value)}"))
    return value


def said_by(place: Place, who: Any, *parts: Any, kind: str = "HUMAN", **given: Any) -> dict[str, Any]:
    """The fields that feedback of a tool's export has: its id is made of `who` said it and of `parts`.

    `who`: the tool's name or number for the person; None or empty: the annotator of the file.
    """
    name = id_of(who, "annotator")
    if name is None and not place.annotator.id.startswith("import:"):
        name = place.annotator.id
    annotator = Annotator(id=name, kind=kind) if name else place.annotator  # type: ignore[arg-type]
    id = stable_id("import", given.get("external_id"), name, *parts)
    return {"id": id, "annotator": annotator, "source": place.source, **given}
