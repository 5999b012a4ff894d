"""Arize Phoenix: spans with their annotations.

    {"context": {"span_id"}, "attributes": {...}, "annotations": [{"name", "annotator_kind", "result": {...}}]}
    {"context.span_id", "attributes.input.value", "attributes.output.value", "annotation_name", "result.label", ...}
    {"input": {...}, "output": {...}, "metadata": {"annotations": {NAME: [{"label", "score", ...}]}}}

The first is what its command line writes with `--include-annotations`, the second the table of spans joined with that
of annotations, the third an example of a data set. Annotations alone name their span by its id: give the spans beside
them, `--texts SPANS`. A label or a score says good or bad as its name allows (`metrics.py`); an explanation is the
comment, a note a critique.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.exchanges import exchange
from rlhf_loop.feedback.importers.fields import Place, completion_of, mapping_of, optional_id, optional_text, prompt_of
from rlhf_loop.feedback.importers.metrics import said_by_metric
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.feedback.importers.words import thumb_named

RECOGNISES = 'Phoenix: spans with `annotations`, or annotations of {"span_id", "annotator_kind", "result"}'
REQUIRED = [("context", "attributes", "annotations"), ("span_id", "annotator_kind", "name", "result")]
KINDS = {"HUMAN": "HUMAN", "LLM": "LLM", "CODE": "CODE"}


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if "annotator_kind" in row and (_span_id(row) is not None or "attributes.input.value" in row):
        return True
    if isinstance(row.get("annotations"), list) and "attributes" in row:
        return True
    metadata = row.get("metadata")
    return isinstance(metadata, Mapping) and isinstance(metadata.get("annotations"), Mapping) and "output" in row


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that were given, by question."""
    for annotation in _annotations(row):
        score = _result(annotation).get("score")
        numeric = isinstance(score, (int, float)) and not isinstance(score, bool)
        yield _name(annotation), float(score) if numeric else None  # type: ignore[arg-type]


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what each annotation says of it."""
    span = row
    if _text_of(row, "output") is None:
        id = _span_id(row)
        span = dict(place.texts.get(str(id), {}))
        if not span:
            raise RowError(
                f"the annotation is about span {id}, whose texts are not in the file; export spans with their "
                "annotations, or give the spans beside: --texts FILE"
            )
    messages, answer, notes = exchange(_text_of(span, "input"), _text_of(span, "output"), ("input", "output"))
    prompt = prompt_of(messages, place)
    completion = completion_of(prompt, answer)
    annotations = _annotations(row)
    about: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
    said = [record for annotation in annotations for record in _said(annotation, place, about)]
    return [prompt, completion, *notes, *(said or [Note("a span has no annotation; its answer is kept without")])]


def _annotations(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a row, each in the form of the API."""
    if "annotator_kind" in row:
        return [row]
    given = decoded(row.get("annotations"))
    metadata = row.get("metadata")
    if given is None and isinstance(metadata, Mapping):
        given = metadata.get("annotations")
    if isinstance(given, Mapping):
        by_name = ((name, one) for name, ones in given.items() for one in (ones if isinstance(ones, list) else [ones]))
        return [{"name": name, **one} for name, one in by_name if isinstance(one, Mapping)]
    return [mapping_of(one, "annotations") for one in given] if isinstance(given, list) else []


def _result(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Label, score and explanation: in `result`, in columns `result.label`, or beside the name."""
    result = decoded(annotation.get("result"))
    if isinstance(result, Mapping):
        return result
    names = ("label", "score", "explanation")
    return {name: annotation.get(f"result.{name}", annotation.get(name)) for name in names}


def _name(annotation: Mapping[str, Any]) -> str:
    return optional_text(annotation, "annotation_name") or optional_text(annotation, "name") or "annotation"


def _span_id(row: Mapping[str, Any]) -> str | None:
    context = row.get("context")
    if isinstance(context, Mapping):
        return optional_id(context, "span_id")
    return optional_id(row, "span_id") or optional_id(row, "context.span_id")


def _said(annotation: Mapping[str, Any], place: Place, about: Mapping[str, Any]) -> list[Any]:
    name, result = _name(annotation), _result(annotation)
    kind = KINDS.get(str(annotation.get("annotator_kind") or "HUMAN").upper(), "CODE")
    who = optional_id(annotation, "user_id") or optional_id(annotation, "username") or optional_id(annotation, "email")
    if kind != "HUMAN":
        who = f"phoenix:{name}"
    given: dict[str, Any] = {
        "external_id": optional_id(annotation, "id") if "result" in annotation else None,
        "created_at": time_in(annotation, "created_at", "updated_at"),
        "kind": kind,
    }
    comment = optional_text(result, "explanation")
    label, score = result.get("label"), result.get("score")
    if name == "note":
        return said_by_metric(place, name, None, comment or optional_text(result, "label"), who, about, given)
    if isinstance(label, str) and (thumb_named(name, label) is not None or score is None):
        return said_by_metric(place, name, label, comment, who, about, given, critique=False)
    return said_by_metric(place, name, score, comment, who, about, given)


def _text_of(row: Mapping[str, Any], side: str) -> Any:
    """The input or the output of a span: its value, or its messages; None where it has none."""
    attributes = decoded(row.get("attributes"))
    inner = attributes.get(side) if isinstance(attributes, Mapping) else None
    held = [
        row.get(f"attributes.{side}.value"),
        attributes.get(f"{side}.value") if isinstance(attributes, Mapping) else None,
        inner.get("value") if isinstance(inner, Mapping) else None,
        row.get(side) if "attributes" not in row else None,
    ]
    value = next((one for one in held if one not in (None, "")), None)
    if value is not None:
        return value
    llm = attributes.get("llm") if isinstance(attributes, Mapping) else None
    messages = llm.get(f"{side}_messages") if isinstance(llm, Mapping) else None
    found = decoded(messages or row.get(f"attributes.llm.{side}_messages"))
    if isinstance(found, list) and found:
        return {"messages": [_unnested(message) for message in found]}
    return None


def _unnested(message: Any) -> Any:
    """A message whose fields stand under `message.`, as OpenInference names them."""
    if isinstance(message, Mapping) and isinstance(message.get("message"), Mapping):
        return message["message"]
    if isinstance(message, Mapping):
        return {str(key).removeprefix("message."): value for key, value in message.items()}
    return message
