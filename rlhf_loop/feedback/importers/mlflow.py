"""MLflow: traces with assessments, as `Trace.to_json` writes them, one a line, or a list of them.

Feedback with true or false (or yes, no, good, bad) becomes a thumb, a number from 1 to 5 a rating on that scale and one
from 0 to 1 on that; its rationale becomes the comment. An expectation that is called `expected_response` (or alike)
becomes an edit. Errors of judges and other expectations are counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.chat import turns_of
from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    completion_of,
    list_of,
    mapping_of,
    optional_text,
    optional_time,
    prompt_of,
    said_by,
)
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Edit, Rating, Thumb

RECOGNISES = 'MLflow: traces of {"info": {"trace_id", "assessments"}, "data": {"spans"}}'
REQUIRED = [("info", "data")]
KINDS = {"HUMAN": "HUMAN", "LLM_JUDGE": "LLM", "AI_JUDGE": "LLM", "CODE": "CODE"}
EXPECTED = ("expected_response", "expected_output", "expected_answer", "ground_truth")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    info = row.get("info")
    return isinstance(info, Mapping) and ("trace_id" in info or "request_id" in info)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what each assessment says of it."""
    info = mapping_of(row.get("info"), "info")
    request, response = _texts(row, info)
    messages = turns_of(request, "request", "user")
    answers = turns_of(response, "response", "assistant")
    if len(answers) != 1 or answers[0]["role"] != "assistant":
        raise RowError("the response must be one answer")
    prompt = prompt_of(messages, place)
    completion = completion_of(prompt, answers[0]["content"])
    records: list[Any] = [prompt, completion]
    assessments = list_of(info.get("assessments") or [], "info.assessments")
    if not assessments:
        records.append(Note("a trace has no assessment"))
    for number, value in enumerate(assessments):
        assessment = mapping_of(value, f"info.assessments[{number}]")
        records += _assessment(assessment, place, prompt.id, completion.id)
    return records


def _texts(row: Mapping[str, Any], info: Mapping[str, Any]) -> tuple[Any, Any]:
    """What went in and what came out: of the root span, which has it whole, or of the trace's previews."""
    data = row.get("data")
    spans = data.get("spans") if isinstance(data, Mapping) else None
    for span in spans if isinstance(spans, list) else []:
        if isinstance(span, Mapping) and not span.get("parent_id") and not span.get("parent_span_id"):
            attributes = mapping_of(span.get("attributes") or {}, "data.spans.attributes")
            given = attributes.get("mlflow.spanInputs"), attributes.get("mlflow.spanOutputs")
            if None not in given:
                return _loaded(given[0]), _loaded(given[1])
    previews = info.get("request_preview"), info.get("response_preview")
    if None in previews:
        raise RowError("the trace holds neither inputs and outputs of its root span nor previews of them")
    return _loaded(previews[0]), _loaded(previews[1])


def _loaded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _assessment(assessment: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    name = optional_text(assessment, "assessment_name") or optional_text(assessment, "name") or "assessment"
    if assessment.get("valid") is False:
        return [Note("an assessment was overridden by a later one")]
    source = assessment.get("source") if isinstance(assessment.get("source"), Mapping) else {}
    kind = KINDS.get(str(source.get("source_type")).upper(), "CODE")  # type: ignore[union-attr]
    who = optional_text(source, "source_id") or None  # type: ignore[arg-type]
    if kind != "HUMAN":
        who = f"{who}:{name}" if who else name
    time = "create_time" if "create_time" in assessment else "create_time_ms"
    given: dict[str, Any] = {
        "external_id": optional_text(assessment, "assessment_id"),
        "created_at": optional_time(assessment, time),
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
    value = feedback.get("value")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    label = None if number else thumb_of(value)
    if label is not None:
        common = said_by(place, who, "thumb", completion_id, label, name, **given)
        return [Thumb(label=label, comment=comment, **about, **common)]
    if number and 0 <= value <= 5:  # type: ignore[operator]
        score, scale = float(value), (0.0, 1.0) if value <= 1 else (1.0, 5.0)  # type: ignore[arg-type, operator]
        common = said_by(place, who, "rating", completion_id, score, name, **given)
        return [Rating(score=score, scale=scale, comment=comment, **about, **common)]
    said = "\n".join(text for text in (value if isinstance(value, str) else None, comment) if text)
    if said.strip():
        common = said_by(place, who, "critique", completion_id, said, name, **given)
        return [Critique(comment=said, **about, **common)]
    return [Note(f"the value of the assessment {name[:40]} is not understood")]
