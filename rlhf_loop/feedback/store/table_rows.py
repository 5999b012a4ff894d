"""Records as rows of the store's tables: the columns that one queries by, and `body`, the record as JSON.

What was written by earlier versions has spaces in its JSON; both are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, ValidationError

from rlhf_loop.records import (
    Artifact,
    Completion,
    Feedback,
    Preference,
    Prompt,
    Question,
    Retraction,
    Score,
    Skip,
    adapter,
    from_dict,
    loads,
    to_dict,
)

COLUMNS = {
    "prompts": ("id", "split", "group_name", "text", "body"),
    "completions": ("id", "prompt_id", "policy", "round", "parent", "text", "body"),
    "feedback": (
        "id",
        "kind",
        "prompt_id",
        "completion_id",
        "a_id",
        "b_id",
        "pair",
        "annotator",
        "round",
        "created_at",
        "supersedes",
        "body",
    ),
    "scores": ("completion_id", "reward_model", "value", "round", "body"),
    "artifacts": ("id", "kind", "round", "parent", "body"),
    "questions": (
        "id",
        "prompt_id",
        "a_id",
        "b_id",
        "pair",
        "round",
        "priority",
        "overlap",
        "answered",
        "body",
    ),
}
"""Table -> its columns, in the order of the rows that are made here."""

TableRow = tuple[Any, ...]

_COMPLETION = ("id", "prompt_id", "policy", "round", "parent")
_SCORE = ("completion_id", "reward_model", "value", "round")
"""Fields that stand in columns of their own and not in the body."""


def prompt_row(prompt: Prompt) -> TableRow:
    """A row of `prompts`."""
    messages = prompt.messages
    text = messages[0]["content"] if len(messages) == 1 else "\n".join(turn["content"] for turn in messages)
    return (prompt.id, prompt.split, storable(prompt.group), storable(text), _json(prompt))


def completion_row(completion: Completion) -> TableRow:
    """A row of `completions`; what stands in columns of its own is not in the body, but for a text that the column
    cannot hold."""
    text = storable(completion.text)
    own = {*_COMPLETION, *_empty(completion, "token_ids", "critique"), *(["text"] if text == completion.text else [])}
    columns = (completion.id, completion.prompt_id, completion.policy, completion.round, completion.parent)
    return (*columns, text, _json(completion, own))


def feedback_row(feedback: Feedback) -> TableRow:
    """A row of `feedback`."""
    a_id: str | None = getattr(feedback, "a_id", None)
    b_id: str | None = getattr(feedback, "b_id", None)
    return (
        feedback.id,
        feedback.kind,
        feedback.prompt_id,
        getattr(feedback, "completion_id", None),
        a_id,
        b_id,
        pair_key(a_id, b_id) if a_id and b_id else None,
        storable(feedback.annotator.id),
        feedback.round,
        feedback.created_at,
        feedback.supersedes,
        _json(feedback),
    )


def score_row(score: Score) -> TableRow:
    """A row of `scores`; what stands in columns of its own is not in the body."""
    own = {*_SCORE, *_empty(score, "spread", "breakdown", "critique")}
    return (score.completion_id, score.reward_model, score.value, score.round, _json(score, own))


def artifact_row(artifact: Artifact) -> TableRow:
    """A row of `artifacts`; what it was trained on and whether it is promoted stand in tables of their own."""
    body = to_dict(artifact)
    del body["trained_on"], body["promoted"]
    return (artifact.id, artifact.kind, artifact.round, artifact.parent, dump(body))


def question_row(question: Question) -> TableRow:
    """A row of `questions`; whether it is answered is settled once it is there."""
    pair = pair_key(question.a_id, question.b_id)
    columns = (question.id, question.prompt_id, question.a_id, question.b_id, pair, question.round, question.priority)
    return (*columns, question.overlap, False, dump(to_dict(question)))


def as_columns(table: str, row: TableRow) -> dict[str, Any]:
    """The row with the names of its columns."""
    return dict(zip(COLUMNS[table], row, strict=True))


def about(feedback: Feedback) -> list[str]:
    """Ids of the completions that a piece of feedback is about."""
    if isinstance(feedback, Preference):
        return [feedback.a_id, feedback.b_id]
    if isinstance(feedback, Retraction):
        return []
    if isinstance(feedback, Skip):
        return [id for id in (feedback.completion_id, feedback.a_id, feedback.b_id) if id]
    return [feedback.completion_id]


def pair_key(a_id: str, b_id: str) -> str:
    """One name for a pair of completions, in whatever order they were shown."""
    return f"{a_id}|{b_id}" if a_id <= b_id else f"{b_id}|{a_id}"


def verdict(preference: Preference) -> str:
    """The verdict however the pair was shown: the winner's id, `tie` or `both_bad`."""
    winner = preference.winner
    return preference.a_id if winner == "a" else preference.b_id if winner == "b" else winner


def storable(text: str) -> str:
    """Text that both databases take: PostgreSQL has no NUL, and neither has halves of surrogate pairs."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def holds(column: Any, name: str, beginning: str) -> Any:
    """The condition that the JSON in a column has a field whose own JSON begins so: `holds(body, "id", '"7"')`.

    It is written with a space after the colon by json, and without one by pydantic.
    """
    written = (f'"{name}":{space}{beginning}' for space in ("", " "))
    without, spaced = (column.contains(text, autoescape=True) for text in written)
    return without | spaced


def dump(values: Mapping[str, Any]) -> str:
    """JSON that both databases take, whatever is in it."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return text if storable(text) == text else json.dumps(values, separators=(",", ":"))


def record_of(record_type: Any, row: Any) -> Any:
    """The record that a row of a table was made of: `body`, and of some tables other columns (`READ`)."""
    return records_of(record_type, [row])[0]


_BESIDE: dict[Any, tuple[str, ...]] = {Completion: (*_COMPLETION, "text"), Score: _SCORE}
"""Record -> the columns that hold fields of it, beside the body."""

READ = {"completions": (*_BESIDE[Completion], "body"), "scores": (*_BESIDE[Score], "body")}
"""Table -> the columns that `records_of` looks at, where there are others than the body."""


def records_of(record_type: Any, rows: Iterable[Any]) -> list[Any]:
    """The records of many rows."""
    if record_type in _BESIDE:
        # What stands in the body too, counts there: a text that its column could not hold, all of an older record.
        names = _BESIDE[record_type]
        values = [{**{name: getattr(row, name) for name in names}, **loads(row.body)} for row in rows]
        records: list[Any] = adapter(list[record_type]).validate_python(values)
        return records
    bodies = [row.body for row in rows]
    try:
        found: list[Any] = adapter(list[record_type]).validator.validate_json(f"[{','.join(bodies)}]")
        return found
    except ValidationError:  # half of a surrogate pair, if not worse
        return [from_dict(record_type, json.loads(body)) for body in bodies]


def _empty(record: Any, *names: str) -> set[str]:
    """Those of the fields that say nothing."""
    return {name for name in names if getattr(record, name) in (None, {})}


def _json(record: Any, leave_out: set[str] | None = None) -> str:
    """`dump(to_dict(record))` without `leave_out`, but by pydantic alone, which takes a fifth of the time."""
    if not getattr(record, "sampling", None):  # in a dictionary of anything it would write `null` for infinity
        try:
            text: bytes = adapter(type(record)).serializer.to_json(record, exclude=leave_out)
            return text.decode()
        except PydanticSerializationError:  # half of a surrogate pair
            pass
    values = to_dict(record)
    for name in leave_out or ():
        del values[name]
    return dump(values)
