"""The loop's own export: one record a line, named by `record`, and questions that were answered by hand.

    {"record": "prompt", "id": "...", "messages": [...], ...}
    {"record": "preference", "id": "...", "a_id": "...", "b_id": "...", "winner": "a", ...}
    {"record": "question", "id": "...", "prompt": "...", "a": "...", "b": "...", "winner": ""}

A question whose `winner` is filled in (a, b, tie, both_bad or skip) becomes that preference; `comment` and
`annotator` may be filled in as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.fields import Place, annotator_of, optional_text, text_of
from rlhf_loop.feedback.importers.times import time_of
from rlhf_loop.records import (
    FEEDBACK_KINDS,
    Artifact,
    Completion,
    Feedback,
    Preference,
    Prompt,
    Question,
    Score,
    Skip,
    from_dict,
    stable_id,
)

RECOGNISES = 'the loop\'s own export: rows of {"record": "prompt" | "completion" | "preference" | ...}'
REQUIRED = [("record", "id")]
RECORDS: dict[str, Any] = {
    "prompt": Prompt,
    "completion": Completion,
    "score": Score,
    "artifact": Artifact,
    "question": Question,
    **dict.fromkeys(FEEDBACK_KINDS, Feedback),
}
"""What `record` may be. Prompts, completions, questions and feedback are read as written."""

WINNERS = ("a", "b", "tie", "both_bad", "skip")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    name = row.get("record")
    return isinstance(name, str) and name in RECORDS


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The record of a row."""
    name = row.get("record")
    if not isinstance(name, str) or name not in RECORDS:
        raise RowError(f"`record` must be one of {', '.join(RECORDS)}, got {name!r}")
    if name == "question":  # its prompt and answers are there to be read only; they may be anything a model writes
        _check_texts({key: row[key] for key in ("winner", "comment") if key in row})
        return _question(row, place)
    _check_texts(row)
    values = {key: value for key, value in row.items() if key != "record"}
    if name in FEEDBACK_KINDS:
        values["kind"] = name
        if not isinstance(values.get("created_at", 0.0), (int, float)):  # ours are seconds; people write dates
            values["created_at"] = time_of(values["created_at"], "created_at")
    record = from_dict(RECORDS[name], values)
    _check_unknown(record, values)
    return [record]


def _question(row: Mapping[str, Any], place: Place) -> list[Any]:
    fields = {key: row[key] for key in Question.__dataclass_fields__ if key in row}
    question = from_dict(Question, fields)
    winner = (optional_text(row, "winner") or "").strip().lower().replace(" ", "_").replace("-", "_")
    if not winner:
        return [question, Note("the question has no `winner` yet and stays open")] if "winner" in row else [question]
    if winner not in WINNERS:
        raise RowError(f"`winner` must be one of {', '.join(WINNERS)}, got {row['winner']!r}")
    annotator = annotator_of(row, place)
    comment = optional_text(row, "comment")
    named = "import" if annotator.id.startswith("import:") else annotator.id
    common: dict[str, Any] = {
        "id": stable_id("answer", question.id, named, winner, comment),
        "prompt_id": question.prompt_id,
        "a_id": question.a_id,
        "b_id": question.b_id,
        "annotator": annotator,
        "round": question.round,
        "comment": comment,
        "created_at": time_of(row.get("created_at"), "created_at"),
        "source": place.source,
        "external_id": question.id,
    }
    return [question, Skip(**common) if winner == "skip" else Preference(winner=winner, **common)]  # type: ignore[arg-type]


def _check_texts(value: Any, name: str = "row") -> None:
    """Refuses text that cannot be stored, wherever in the row it is."""
    if isinstance(value, str):
        text_of(value, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, name)


def _check_unknown(record: Any, values: Mapping[str, Any]) -> None:
    unknown = [key for key in values if key not in record.__dataclass_fields__]
    if unknown:
        raise RowError(
            f"a {type(record).__name__} has no field {', '.join(unknown)}; was it written by a newer version?"
        )
