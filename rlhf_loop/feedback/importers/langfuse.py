"""Langfuse: traces with their scores, as the API answers, as its page of a trace and its export of many write them.

    {"id": "trace-1", "input": ..., "output": ..., "observations": [...],
     "scores": [{"name", "value", "stringValue", "dataType", "comment", "source", "observationId"}]}
    {"observations": [...], "scores": [...]}
    {"id": "trace-1", "input": ..., "output": ..., "bookmarked": false, ..., "user-feedback": [1], "comments": [...]}

A score is about the observation that it names, and otherwise about the trace, whose texts are those of its root
observation where it has none of its own. A score alone has no texts: it is refused, unless its `trace` is in it.

`BOOLEAN` and `CATEGORICAL` scores are thumbs where word and name say what is good, `NUMERIC` ones thumbs for -1 (or 0
and 1 of users' feedback) and ratings otherwise, from 0 to 1 where their numbers allow it (`scales.py`), `TEXT` ones and
comments critiques, `CORRECTION` an edit.
`ANNOTATION` is a person, `EVAL` a language model, `API` whoever wrote it: a person. The export of many traces says
neither who gave a score nor how: what is no users' feedback there counts as given by a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.exchanges import exchange
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    list_of,
    mapping_of,
    optional_id,
    optional_text,
    prompt_of,
    said_by,
)
from rlhf_loop.feedback.importers.metrics import said_by_metric
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.feedback.importers.words import speaks_of_good, thumb_named, words_of
from rlhf_loop.records import Critique, Edit, Thumb

RECOGNISES = 'Langfuse: traces of {"input", "output", "scores"}, exported traces, or scores with their `trace`'
REQUIRED = [
    ("input", "output", "scores"),
    ("observations", "scores"),
    ("timestamp", "input", "output", "bookmarked", "public"),
    ("traceId", "name", "value", "trace"),
]
KINDS = {"ANNOTATION": "HUMAN", "API": "HUMAN", "EVAL": "LLM"}
EXPORTED = {
    "id",
    "timestamp",
    "name",
    "userId",
    "sessionId",
    "release",
    "version",
    "environment",
    "tags",
    "bookmarked",
    "public",
    "input",
    "output",
    "metadata",
    "comments",
}
"""The columns of an exported trace; each other one that holds a list is a score."""
_FEEDBACK = re.compile(r"(?:^|_)(?:feedback|thumbs?)")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if any(all(key in row for key in keys) for keys in REQUIRED[:3]):
        return True
    return "name" in row and "dataType" in row and ("traceId" in row or ("source" in row and "environment" in row))


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that were given, by question."""
    for score in _scores(row):
        value: Any = score.get("value")
        numeric = str(score.get("dataType") or "NUMERIC").upper() == "NUMERIC" and isinstance(value, (int, float))
        yield str(score.get("name") or "score"), float(value) if numeric else None


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """Of all that was scored the prompt and the answer, and what each score says of it."""
    trace, scores = _trace(row), _scores(row)
    exchanges: dict[str | None, list[Any]] = {}
    records: list[Any] = []
    for score in scores:
        about = optional_id(score, "observationId")
        if about not in exchanges:
            exchanges[about] = _exchange(trace, about, place)
            records += exchanges[about]
        if not exchanges[about]:
            records.append(Note("a score is about a step that holds no prompt and answer, or is not in the file"))
        else:
            prompt, completion, *_ = exchanges[about]
            records += _score(score, place, prompt.id, completion.id)
    if not scores:
        records += [*_exchange(trace, None, place), Note("a trace has no score")]
    return records


def _trace(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if "scores" in row or "dataType" not in row:
        return row
    trace = row.get("trace")
    if not isinstance(trace, Mapping) or "input" not in trace:
        subject = row.get("subject")
        id = row.get("traceId") or (subject.get("id") if isinstance(subject, Mapping) else None)
        raise RowError(
            f"the score is about trace {id}, whose texts are not in the file; export the traces with their scores "
            "instead, or give the traces beside: --texts FILE"
        )
    return trace


def _scores(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "scores" in row:
        values = list_of(decoded(row["scores"]), "scores")
        if any(isinstance(value, str) for value in values):
            raise RowError("`scores` holds ids alone, as lists of traces do; fetch each: GET /api/public/traces/ID")
        user = optional_id(row, "userId")
        return [{"user": user, **mapping_of(value, f"scores[{number}]")} for number, value in enumerate(values)]
    if "dataType" in row:
        return [row]
    return [*_columns(row), *_comments(row)]


def _columns(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The scores of an exported trace: a column each, of numbers or of words."""
    given = {"source": "EXPORT", "timestamp": row.get("timestamp"), "user": optional_id(row, "userId")}
    for name, values in row.items():
        if name in EXPORTED or not isinstance(values, list):
            continue
        for value in values:
            if isinstance(value, str):
                yield {"name": name, "stringValue": value, "dataType": "CATEGORICAL", **given}
            elif isinstance(value, (int, float)):
                yield {"name": name, "value": value, "dataType": "NUMERIC", **given}


def _comments(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """People's comments on an exported trace."""
    for number, value in enumerate(list_of(row.get("comments") or [], "comments")):
        comment = mapping_of(value, f"comments[{number}]")
        who = comment.get("author_email") or comment.get("authorUserId")
        yield {
            "id": comment.get("id"),
            "name": "comment",
            "stringValue": comment.get("content"),
            "dataType": "TEXT",
            "source": "ANNOTATION",
            "authorUserId": who,
            "timestamp": comment.get("created_at"),
        }


def _exchange(trace: Mapping[str, Any], observation: str | None, place: Place) -> list[Any]:
    """The prompt and the answer of an observation, or of the trace, with notes; nothing for an observation that holds
    none."""
    observations = trace.get("observations")
    steps = [step for step in observations if isinstance(step, Mapping)] if isinstance(observations, list) else []
    if observation is not None:
        step = next((step for step in steps if step.get("id") == observation), None)
        try:
            return [] if step is None else _texts(step, place)
        except RowError:
            return []
    if trace.get("input") is None or trace.get("output") is None:
        trace = next((step for step in steps if step.get("parentObservationId") is None), trace)
    return _texts(trace, place)


def _texts(step: Mapping[str, Any], place: Place) -> list[Any]:
    messages, answer, notes = exchange(step.get("input"), step.get("output"), ("input", "output"))
    prompt = prompt_of(messages, place)
    return [prompt, completion_of(prompt, answer), *notes]


def _score(score: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    source = str(score.get("source") or "API").upper()
    name = optional_text(score, "name") or "score"
    comment = optional_text(score, "comment")
    users = bool(_FEEDBACK.search(words_of(name))) and source in ("API", "EXPORT")
    who = optional_id(score, "authorUserId")
    if who is None:
        who = optional_id(score, "user") if users else None if KINDS.get(source) == "HUMAN" else f"langfuse:{name}"
    given: dict[str, Any] = {
        "external_id": optional_id(score, "id"),
        "created_at": time_in(score, "timestamp", "createdAt"),
        "kind": "HUMAN" if users else KINDS.get(source, "CODE"),
    }
    about: dict[str, Any] = {"prompt_id": prompt_id, "completion_id": completion_id}
    type_ = str(score.get("dataType") or "NUMERIC").upper()
    text = None
    if type_ in ("CORRECTION", "TEXT"):
        text = optional_text(score, "value" if score.get("stringValue") is None else "stringValue")
    if type_ == "CORRECTION" and text:
        common = said_by(place, who, "edit", completion_id, text, **given)
        return [Edit(edited_completion=text, comment=comment, **about, **common)]
    if type_ == "TEXT" and text:
        comment = "\n".join(part for part in (text, comment) if part)
        common = said_by(place, who, "critique", completion_id, comment, name, **given)
        return [Critique(comment=comment, **about, **common)]
    label = _label(score, type_, name, place)
    if label is not None:
        common = said_by(place, who, "thumb", completion_id, label, name, **given)
        return [Thumb(label=label, comment=comment, **about, **common)]
    value: Any = score.get("value")
    if type_ != "NUMERIC" and score.get("stringValue") is not None:
        value = score["stringValue"]
    return said_by_metric(place, name, value, comment, who, about, given, usual=(0.0, 1.0), critique=False)


def _label(score: Mapping[str, Any], type_: str, name: str, place: Place) -> bool | None:
    value, text = score.get("value"), score.get("stringValue")
    if type_ == "BOOLEAN":
        return thumb_named(name, text if value is None else value)
    if type_ == "CATEGORICAL":
        return thumb_named(name, value if text is None else text)
    if type_ != "NUMERIC" or value not in (-1, 0, 1) or not speaks_of_good(name):
        return None
    if place.scales.beyond_one(name, value):  # others gave numbers between or above
        return None
    return thumb_named(name, value)
