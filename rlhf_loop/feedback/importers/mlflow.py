"""MLflow: traces with assessments, as `Trace.to_json` and the table of `search_traces` write them.

    {"info": {"trace_id", "assessments": [...]}, "data": {"spans": [...]}}      one a line, or a list of them
    {"trace_id", "request", "response", "spans", "assessments", ...}            a row of the table (JSON, CSV, Parquet)

Feedback with true or false (or yes, no, good, bad) becomes a thumb where word and name say what is good, a number a
rating on the scale of its question (`scales.py`) where its name calls for something good; its rationale becomes the
comment. An expectation that is called `expected_response` (or alike) becomes an edit. What an agent did on the way to
its answer is left out. Errors of judges and other expectations are counted and left out.
"""

from __future__ import annotations

import json
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
from rlhf_loop.feedback.importers.metrics import number_in, said_by_metric
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.records import Edit

RECOGNISES = 'MLflow: traces of {"info": {"trace_id", "assessments"}, "data": {"spans"}}, or rows of search_traces'
REQUIRED = [("info", "data"), ("trace_id", "request", "response", "assessments")]
KINDS = {"HUMAN": "HUMAN", "LLM_JUDGE": "LLM", "AI_JUDGE": "LLM", "CODE": "CODE"}
EXPECTED = ("expected_response", "expected_output", "expected_answer", "ground_truth")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    info = row.get("info")
    if isinstance(info, Mapping) and ("trace_id" in info or "request_id" in info):
        return True
    return ("trace_id" in row or "request_id" in row) and (
        "assessments" in row or "spans" in row or "execution_duration" in row or "execution_time_ms" in row
    )


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that were given, by question."""
    for value in _assessments(row):
        feedback = value.get("feedback") if isinstance(value, Mapping) else None
        if isinstance(feedback, Mapping):
            yield _name(value), number_in(feedback.get("value"))


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what each assessment says of it."""
    messages, answer, notes = exchange(*_texts(row))
    prompt = prompt_of(messages, place)
    completion = completion_of(prompt, answer)
    records: list[Any] = [prompt, completion, *notes]
    assessments = _assessments(row)
    if not assessments:
        records.append(Note("a trace has no assessment"))
    for number, value in enumerate(assessments):
        records += _assessment(mapping_of(value, f"assessments[{number}]"), place, prompt.id, completion.id)
    return records


def _assessments(row: Mapping[str, Any]) -> list[Any]:
    info = row.get("info")
    if isinstance(info, Mapping):
        return list_of(info.get("assessments") or [], "info.assessments")
    given = decoded(row.get("assessments"))
    if given in (None, "", []):
        trace = decoded(row.get("trace"))  # older tables hold them in the whole trace alone
        return _assessments(trace) if isinstance(trace, Mapping) and "info" in trace else []
    return list_of(given, "assessments")


def _texts(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """What went in and what came out: of the row, of the root span, which has it whole, or of the trace's previews."""
    if "info" not in row and None not in (row.get("request"), row.get("response")):
        return row["request"], None if row["response"] == "null" else row["response"]
    trace = row if "info" in row else decoded(row.get("trace"))
    data = trace.get("data") if isinstance(trace, Mapping) else None
    spans = decoded(data.get("spans") if isinstance(data, Mapping) else row.get("spans"))
    for span in spans if isinstance(spans, list) else []:
        if isinstance(span, Mapping) and not span.get("parent_id") and not span.get("parent_span_id"):
            attributes = mapping_of(span.get("attributes") or {}, "data.spans.attributes")
            given = _loaded(attributes.get("mlflow.spanInputs")), _loaded(attributes.get("mlflow.spanOutputs"))
            given = (_loaded(span.get("inputs")), _loaded(span.get("outputs"))) if None in given else given
            if None not in given:
                return given
    info = trace.get("info") if isinstance(trace, Mapping) else None
    for held, names in ((data, ("request", "response")), (info, ("request_preview", "response_preview"))):
        if isinstance(held, Mapping):
            given = _loaded(held.get(names[0])), _loaded(held.get(names[1]))
            if None not in given:
                return given
    raise RowError("the trace holds neither inputs and outputs of its root span nor previews of them")


def _loaded(value: Any) -> Any:
    """What an attribute holds: JSON, in which a text stands in quotes, and nothing is null."""
    if isinstance(value, str) and (value[:1] == '"' or value == "null"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _name(assessment: Mapping[str, Any]) -> str:
    return optional_text(assessment, "assessment_name") or optional_text(assessment, "name") or "assessment"


def _assessment(assessment: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    name = _name(assessment)
    if assessment.get("valid") is False:
        return [Note("an assessment was overridden by a later one")]
    source = assessment.get("source")
    source = source if isinstance(source, Mapping) else {}
    kind = KINDS.get(str(source.get("source_type")).upper(), "CODE")
    who = optional_id(source, "source_id")
    if kind != "HUMAN":
        who = f"{who}:{name}" if who else name
    given: dict[str, Any] = {
        "external_id": optional_id(assessment, "assessment_id"),
        "created_at": time_in(assessment, "create_time", "create_time_ms"),
        "kind": kind,
    }
    about: dict[str, Any] = {"prompt_id": prompt_id, "completion_id": completion_id}
    comment = optional_text(assessment, "rationale")
    expectation = assessment.get("expectation")
    if isinstance(expectation, Mapping):
        value = expectation.get("value")
        if name.lower() in EXPECTED and isinstance(value, str) and value.strip():
            common = said_by(place, who, "edit", completion_id, value, **given)
            return [Edit(edited_completion=value, comment=comment, **about, **common)]
        return [Note(f"the expectation {name[:40]} is no answer")]
    feedback = assessment.get("feedback")
    if not isinstance(feedback, Mapping) or feedback.get("error") or assessment.get("error"):
        return [Note("an assessment holds an error in place of a value")]
    return said_by_metric(place, name, feedback.get("value"), comment, who, about, given)
