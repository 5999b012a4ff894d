"""Records as rows of the store's tables, as `store.py` makes them but ten times faster.

The JSON of a record is put together from its fields, without pydantic; a test holds every row against `store.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any, NamedTuple

from rlhf_loop.feedback.importers.reading import Parsed
from rlhf_loop.feedback.rows import Refused
from rlhf_loop.feedback.store import AnyFeedback, _storable, about, pair_key
from rlhf_loop.records import Annotator, Artifact, Completion, Preference, Prompt, Question, Score, to_dict

COLUMNS = {
    "prompts": ("id", "split", "group_name", "text", "body"),
    "completions": ("id", "prompt_id", "policy", "round", "parent", "text", "body"),
    "feedback": (
        "id", "kind", "prompt_id", "completion_id", "a_id", "b_id", "pair", "annotator", "round", "created_at",
        "supersedes", "body",
    ),
}  # fmt: skip
"""Table -> its columns, in the order of a row."""

_quote: Callable[[str], str] = json.encoder.encode_basestring  # as json.dumps(..., ensure_ascii=False) writes a text
_encode = json.JSONEncoder(ensure_ascii=False).encode
_layouts: dict[type, tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {}


class Prepared(NamedTuple):
    """A row of a file as rows of tables, `(table, id, row)` for each record, in order."""

    parsed: Parsed
    rows: list[tuple[str, str, tuple[Any, ...]]]
    other: Any = None  # a score, artifact or question of the loop's own export


class Batch:
    """Rows of a file that are written together."""

    def __init__(self) -> None:
        self.items: list[Prepared | Refused] = []
        self.size = 0  # characters
        self.rows: dict[str, dict[str, tuple[Any, ...]]] = {name: {} for name in COLUMNS}  # by id, the first of each
        self.regular = True  # no row is refused, repeats or contradicts another, or names what is not in it
        self.pairs: set[str] = set()
        self.repeated_pairs = False

    def add(self, item: Parsed | Refused) -> None:
        """Takes in the next row of the file."""
        if isinstance(item, Refused):
            self.items.append(item)
            self.size += len(item.raw)
            self.regular = False
            return
        rows: list[tuple[str, str, tuple[Any, ...]]] = []
        other = None
        for record in item.records:
            if type(record) is Prompt:
                name, row = "prompts", prompt_row(record)
            elif type(record) is Completion:
                name, row = "completions", completion_row(record)
            elif isinstance(record, (Score, Artifact, Question)):
                other = record
                continue
            else:
                name, row = "feedback", feedback_row(record)
            rows.append((name, row[0], row))
            self._register(name, row)
        if other is not None or not rows:
            self.regular = False
        self.items.append(Prepared(item, rows, other))

    def _register(self, name: str, row: tuple[Any, ...]) -> None:
        first = self.rows[name].setdefault(row[0], row)
        if first is row:
            self.size += len(row[-1]) + len(row[-2] or "")
        elif name == "feedback" or first != row:
            self.regular = False
        for table, id in named_in(name, row):
            if id not in self.rows[table]:
                self.regular = False
        if name == "feedback" and row[6] is not None:
            if row[6] in self.pairs:
                self.repeated_pairs = True
            self.pairs.add(row[6])


def named_in(name: str, row: tuple[Any, ...]) -> tuple[tuple[str, str], ...]:
    """The records that a row of a table names: table and id."""
    if name == "prompts":
        return ()
    if name == "completions":
        return (("prompts", row[1]),)
    if row[4] is not None and row[5] is not None:
        return (("prompts", row[2]), ("completions", row[4]), ("completions", row[5]))
    return (("prompts", row[2]), *(("completions", id) for id in row[3:6] if id is not None))


def prompt_row(prompt: Prompt) -> tuple[Any, ...]:
    """A row of `prompts`."""
    messages = prompt.messages
    text = messages[0]["content"] if len(messages) == 1 else "\n".join(turn["content"] for turn in messages)
    return (prompt.id, prompt.split, _storable(prompt.group), _storable(text), body_of(prompt))


def completion_row(completion: Completion) -> tuple[Any, ...]:
    """A row of `completions`; its text stands in its own column only, where the column can hold it."""
    text = _storable(completion.text)
    return (
        completion.id,
        completion.prompt_id,
        completion.policy,
        completion.round,
        completion.parent,
        text,
        body_of(completion, leave_out_text=text == completion.text),
    )


def feedback_row(feedback: AnyFeedback) -> tuple[Any, ...]:
    """A row of `feedback`."""
    a_id: str | None = getattr(feedback, "a_id", None)
    b_id: str | None = getattr(feedback, "b_id", None)
    ids = about(feedback) if a_id is None else []
    return (
        feedback.id,
        feedback.kind,
        feedback.prompt_id,
        ids[0] if ids else None,
        a_id,
        b_id,
        pair_key(a_id, b_id) if a_id and b_id else None,
        _storable(feedback.annotator.id),
        feedback.round,
        feedback.created_at,
        feedback.supersedes,
        body_of(feedback),
    )


def body_of(record: Any, leave_out_text: bool = False) -> str:
    """A record as JSON, as the store keeps it."""
    text = _json_of(record, leave_out_text)
    if _storable(text) != text:
        values = to_dict(record)
        if leave_out_text:
            del values["text"]
        return json.dumps(values)
    return text


def _completion_json(record: Completion, leave_out_text: bool) -> str:
    """The same for the records that there are most of, field by field in their order."""
    text = "" if leave_out_text else f'"text": {_quote(record.text)}, '
    return (
        f'{{"id": {_quote(record.id)}, "prompt_id": {_quote(record.prompt_id)}, {text}'
        f'"policy": {_quote(record.policy)}, "round": {record.round}, "sample": {record.sample}, '
        f'"seed": {record.seed}, "sampling": {_encode(to_dict(record)["sampling"]) if record.sampling else "{}"}, '
        f'"finish_reason": {_quote(record.finish_reason)}, "tokens": {record.tokens}, '
        f'"parent": {_text(record.parent)}, "critique": {_text(record.critique)}}}'
    )


def _preference_json(record: Preference) -> str:
    return (
        f'{{"id": {_quote(record.id)}, "prompt_id": {_quote(record.prompt_id)}, '
        f'"annotator": {_annotator(record.annotator)}, "created_at": {_number(record.created_at)}, '
        f'"round": {record.round}, "comment": {_text(record.comment)}, '
        f'"rubric_version": {_text(record.rubric_version)}, "lead_time": {_number(record.lead_time)}, '
        f'"source": {_quote(record.source)}, "external_id": {_text(record.external_id)}, '
        f'"supersedes": {_text(record.supersedes)}, "kind": "preference", "a_id": {_quote(record.a_id)}, '
        f'"b_id": {_quote(record.b_id)}, "winner": {_quote(record.winner)}, "strength": {_number(record.strength)}, '
        f'"shown_order": {_text(record.shown_order)}, "blind": {"true" if record.blind else "false"}}}'
    )


def _text(value: str | None) -> str:
    return "null" if value is None else _quote(value)


def _number(value: float | None) -> str:
    return "null" if value is None else repr(value) if isfinite(value) else _encode(value)


def _json_of(record: Any, leave_out_text: bool = False) -> str:
    cls = type(record)
    if cls is Completion:
        return _completion_json(record, leave_out_text)
    if cls is Preference:
        return _preference_json(record)
    if cls not in _layouts:
        names = tuple(field.name for field in fields(record))
        _layouts[cls] = (tuple(f'"{name}": ' for name in names), attrgetter(*names))
    labels, values_of = _layouts[cls]
    parts = []
    for label, value in zip(labels, values_of(record), strict=True):
        if value is None:
            parts.append(label + "null")
        elif type(value) is str:
            parts.append(label + _quote(value))
        else:
            parts.append(label + _WRITERS.get(type(value), _nested)(value))
    return "{" + ", ".join(parts) + "}"


def _nested(value: Any) -> str:
    if is_dataclass(value):
        return _json_of(value)
    return _encode(value)


def _several(values: tuple[Any, ...]) -> str:
    return "[" + ", ".join([_WRITERS.get(type(value), _nested)(value) for value in values]) + "]"


def _message_or_other(value: dict[str, Any]) -> str:
    """A message of a conversation, mostly."""
    if not value:
        return "{}"
    if tuple(value) == ("role", "content") and type(value["role"]) is type(value["content"]) is str:
        return f'{{"role": {_quote(value["role"])}, "content": {_quote(value["content"])}}}'
    return _encode(value)


@lru_cache(maxsize=10_000)
def _annotator(value: Annotator) -> str:
    return _json_of(value)


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _quote,
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    float: _number,
    tuple: _several,
    dict: _message_or_other,
    Annotator: _annotator,
}
