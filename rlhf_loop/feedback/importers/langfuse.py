"""Langfuse: traces with their scores, as the API and the export of traces give them.

    {"id": "trace-1", "input": ..., "output": ..., "scores": [{"name", "value", "dataType", "comment", "source"}]}

A score alone names a trace and has no texts: it is refused, unless its `trace` is in it. `BOOLEAN` scores are thumbs,
`CATEGORICAL` ones too where the word means good or bad, `NUMERIC` ones thumbs for 1 and -1 (or 0 and 1 under a name of
user feedback) and ratings from 0 to 1 otherwise. `ANNOTATION` is a person, `EVAL` a language model, `API` whoever wrote
it: a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.chat import turns_of
from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    completion_of,
    list_of,
    mapping_of,
    optional_number,
    optional_text,
    optional_time,
    prompt_of,
    said_by,
)
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Rating, Thumb

RECOGNISES = 'Langfuse: traces of {"input", "output", "scores"}, or scores with their `trace`'
REQUIRED = [("input", "output", "scores"), ("traceId", "name", "value", "trace")]
KINDS = {"ANNOTATION": "HUMAN", "API": "HUMAN", "EVAL": "LLM"}


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return all(key in row for key in REQUIRED[0]) or ("traceId" in row and "name" in row and "dataType" in row)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what each score says of it."""
    if "scores" in row:
        trace, scores = row, list_of(row.get("scores"), "scores")
    else:
        if not isinstance(row.get("trace"), Mapping) or "input" not in row["trace"]:
            raise RowError(
                f"the score is about trace {row.get('traceId')}, whose texts are not in the file; export the traces "
                "with their scores instead"
            )
        trace, scores = row["trace"], [row]
    messages = turns_of(trace.get("input"), "input", "user")
    answers = turns_of(trace.get("output"), "output", "assistant")
    if len(answers) != 1 or answers[0]["role"] != "assistant":
        raise RowError("`output` must be one answer")
    prompt = prompt_of(messages, place)
    completion = completion_of(prompt, answers[0]["content"])
    records: list[Any] = [prompt, completion]
    if not scores:
        records.append(Note("a trace has no score"))
    for number, value in enumerate(scores):
        records += _score(mapping_of(value, f"scores[{number}]"), place, prompt.id, completion.id)
    return records


def _score(score: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    source = str(score.get("source") or "API").upper()
    name = optional_text(score, "name") or "score"
    comment = optional_text(score, "comment")
    who = optional_text(score, "authorUserId") or (f"langfuse:{name}" if source == "EVAL" else None)
    given: dict[str, Any] = {
        "external_id": optional_text(score, "id"),
        "created_at": optional_time(score, "timestamp"),
        "kind": KINDS.get(source, "CODE"),
    }
    about: dict[str, Any] = {"prompt_id": prompt_id, "completion_id": completion_id}
    type_ = str(score.get("dataType") or "NUMERIC").upper()
    label = _label(score, type_, name)
    if label is not None:
        common = said_by(place, who, "thumb", completion_id, label, name, **given)
        return [Thumb(label=label, comment=comment, **about, **common)]
    if type_ == "NUMERIC":
        value = optional_number(score, "value")
        if value is not None and 0 <= value <= 1:
            common = said_by(place, who, "rating", completion_id, value, name, **given)
            return [Rating(score=value, scale=(0.0, 1.0), comment=comment, **about, **common)]
    if comment:
        common = said_by(place, who, "critique", completion_id, comment, name, **given)
        return [Critique(comment=comment, **about, **common), Note(f"the value of the score {name[:40]} is left out")]
    return [Note(f"the score {name[:40]} is neither good or bad nor from 0 to 1")]


def _label(score: Mapping[str, Any], type_: str, name: str) -> bool | None:
    if type_ == "BOOLEAN":
        return thumb_of(score.get("stringValue") if score.get("value") is None else score.get("value"))
    if type_ == "CATEGORICAL":
        return thumb_of(score.get("stringValue") if score.get("stringValue") is not None else score.get("value"))
    value = score.get("value")
    if value == -1 or (value in (0, 1) and any(word in name.lower() for word in ("feedback", "thumb", "user"))):
        return thumb_of(value)
    return None
