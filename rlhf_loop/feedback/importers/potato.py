"""Potato: what annotators said of its instances.

    {"instance_id", "user_id", "labels": {SCHEME: {LABEL: VALUE}}, "spans"}       `annotations.jsonl` of its exports
    instance_id,user_id,SCHEME.LABEL,...                                          the same as CSV, TSV or Parquet
    {"user_id", "instance_id_to_label_to_value": {INSTANCE: ...}}                 `user_state.json` of a person
    {"id", "displayed_text", "label_annotations": {SCHEME: {LABEL: VALUE}}}       `annotated_instances.jsonl` (before 2)

They name instances by their ids; the texts stand in the task's data file: `--texts FILE`. `pairwise` becomes a
preference between the two answers of an instance (a negative `scale_value` prefers the first), a Likert scale, a slider
or a number a rating on its question's scale, one chosen label a preference or a thumb as its word says, and what is
written the comment. Spans are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.fields import Place, id_of, mapping_of, optional_id, said_by
from rlhf_loop.feedback.importers.metrics import said_by_metric
from rlhf_loop.feedback.importers.tasks import Task, choice, preferences, task_of
from rlhf_loop.feedback.importers.words import thumb_of, winner_of, words_of
from rlhf_loop.records import Critique, Preference

RECOGNISES = 'Potato: annotations of {"instance_id", "user_id", "labels"}, as JSON or a table, or a `user_state.json`'
REQUIRED = [("instance_id", "user_id", "labels"), ("user_id", "instance_id_to_label_to_value")]
STATE = "instance_id_to_label_to_value"
OF_AN_ANNOTATION = (
    "instance_id",
    "user_id",
    "labels",
    "spans",
    "links",
    "id",
    "displayed_text",
    "label_annotations",
    "span_annotations",
    "behavioral_data",
    "item",
    "data",
)
WRITTEN = ("text_box", "text", "justification", "free_response", "textbox", "comment", "explanation", "reason")
"""What labels that were written are called; of a scheme called alike too."""

_POINT = re.compile(r"(?:scale|point|likert)?_?(-?\d+(?:\.\d+)?)")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return STATE in row or "label_annotations" in row or ("instance_id" in row and "user_id" in row)


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that people gave, by question."""
    for _, _, labels in _instances(row, ""):
        for scheme, said in labels.items():
            number = _number(_labels(said))
            if number is not None:
                yield scheme, number


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompts, their answers, and what somebody says of them."""
    records: list[Any] = []
    lost: list[str] = []
    found = list(_instances(row, place.file))
    for instance, who, labels in found:
        shown = _shown(row, instance, place)
        if shown is None:
            lost.append(instance)
            continue
        task = task_of(shown, place)
        records += [task.prompt, *task.answers.values(), *task.notes]
        records += _said(labels, task, place, who, instance)
    if lost and len(lost) == len(found):
        raise RowError(
            f"the texts of instance {lost[0][:60]} are not in the file; give the task's data beside: --texts FILE"
        )
    return [*records, *(Note("an instance is not among the texts") for _ in lost), *_spans(row)]


def _instances(row: Mapping[str, Any], file: str) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """Instance, person and labels by scheme."""
    who = optional_id(row, "user_id")
    if STATE in row:
        for instance, labels in mapping_of(row[STATE], STATE).items():
            yield id_of(instance, STATE) or "", who, _by_scheme(labels)
        return
    if "label_annotations" in row:
        folder = Path(file).parent.name if Path(file).name.startswith("annotated_instances") else None
        yield optional_id(row, "id") or "", who or folder, _by_scheme(row["label_annotations"])
        return
    instance = optional_id(row, "instance_id") or ""
    if row.get("labels") is not None:
        yield instance, who, _by_scheme(decoded(row["labels"]))
        return
    by_column: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        scheme, dot, label = str(column).partition(".")
        if column not in OF_AN_ANNOTATION and value not in (None, "") and label != "_spans":
            by_column.setdefault(scheme, {})[label if dot else str(value)] = value
    yield instance, who, by_column


def _by_scheme(labels: Any) -> dict[str, Any]:
    """Labels by scheme, also where they are pairs of `{"schema", "name"}` and value."""
    if isinstance(labels, Mapping):
        return dict(labels)
    by_scheme: dict[str, Any] = {}
    for entry in labels if isinstance(labels, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], Mapping):
            by_scheme.setdefault(str(entry[0].get("schema")), {})[str(entry[0].get("name"))] = entry[1]
    return by_scheme


def _shown(row: Mapping[str, Any], instance: str, place: Place) -> dict[str, Any] | None:
    """What the annotator saw: beside the annotation, in the file of texts, or the text that was displayed."""
    beside = next((row[name] for name in ("item", "data") if isinstance(row.get(name), Mapping)), None)
    shown = beside or place.texts.get(instance)
    if shown is None and "labels" in row:
        shown = {name: value for name, value in row.items() if name not in OF_AN_ANNOTATION} or None
    if shown is None and row.get("displayed_text"):
        shown = {"text": row["displayed_text"]}
    if shown is None:
        return None
    shown = {str(name): decoded(value) for name, value in shown.items() if name not in ("id", "instance_id", "item_id")}
    text = shown.get("text")
    if isinstance(text, (list, Mapping)) and "responses" not in shown:  # a list of texts, or texts by their letters
        shown["responses"] = list(text.values()) if isinstance(text, Mapping) else text
        del shown["text"]
    return shown


def _labels(said: Any) -> dict[str, Any]:
    """What was chosen or written under a scheme: label -> value, without those that were not chosen."""
    if not isinstance(said, Mapping):
        return {} if said in (None, "") else {str(said): said}
    return {str(label): value for label, value in said.items() if value not in (None, "", False, "false", "0", 0)}


def _number(labels: Mapping[str, Any]) -> float | None:
    """The one number of a Likert scale, a slider or a field; None where there is none, or another thing was said."""
    if len(labels) != 1:
        return None
    ((label, value),) = labels.items()
    if label == "scale_value" or isinstance(value, bool):
        value = label
    for text in (value, label):
        point = _POINT.fullmatch(str(text).strip())
        if point:
            return float(point.group(1))
    return None


def _said(labels: Mapping[str, Any], task: Task, place: Place, who: str | None, instance: str) -> list[Any]:
    given: dict[str, Any] = {"external_id": instance or None}
    ids = [completion.id for completion in task.answers.values()]
    by_scheme = {scheme: _labels(said) for scheme, said in labels.items()}
    texts = [
        value.strip()
        for scheme, chosen in by_scheme.items()
        for label, value in chosen.items()
        if isinstance(value, str) and value.strip() and (label in WRITTEN or words_of(scheme).endswith(WRITTEN))
    ]
    comment = "\n".join(dict.fromkeys(texts)) or None
    records: list[Any] = []
    for scheme, chosen in by_scheme.items():
        chosen = {label: value for label, value in chosen.items() if label not in WRITTEN}
        if not chosen or words_of(scheme).endswith(WRITTEN):
            continue
        records += _verdict(scheme, chosen, task, place, who, comment, given)
    said = [record for record in records if not isinstance(record, Note)]
    if not said and comment and len(ids) == 1:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(prompt_id=task.prompt.id, completion_id=ids[0], comment=comment, **common))
    return records or [Note("an annotation holds no verdict")]


def _verdict(
    scheme: str,
    chosen: Mapping[str, Any],
    task: Task,
    place: Place,
    who: str | None,
    comment: str | None,
    given: Mapping[str, Any],
) -> list[Any]:
    ids = [completion.id for completion in task.answers.values()]
    if len(ids) == 1:
        about = {"prompt_id": task.prompt.id, "completion_id": ids[0]}
        value: Any = _number(chosen)
        if value is None and len(chosen) == 1:
            ((label, raw),) = chosen.items()
            value = label if raw in (True, "true", "1", 1, label) or thumb_of(raw) is None else raw
        return said_by_metric(place, scheme, value, comment, who, about, given, critique=False)
    if len(ids) == 2 and set(chosen) == {"scale_value"}:
        number = float(str(chosen["scale_value"]))
        order = [[0, 1]] if number == 0 else [[0], [1]] if number < 0 else [[1], [0]]
        return list(preferences(task, order, place, who, scheme, comment, **given))
    records: list[Any] = []
    for label, value in chosen.items():  # one, or one a dimension
        name = scheme if len(chosen) == 1 else f"{scheme}.{label}"
        word = value if isinstance(value, str) and value not in ("true", "1") else label
        first, second, *_ = task.answers
        winner = winner_of(word, (first, second)) if len(ids) == 2 else None
        best = {"a": 0, "b": 1}.get(str(winner)) if len(ids) == 2 else task.number(word)
        if best is not None:
            records += choice(task, best, place, who, name, comment, **given)
        elif winner is not None:
            common = said_by(place, who, "preference", *ids, winner, name, **given)
            pair: dict[str, Any] = {"prompt_id": task.prompt.id, "a_id": ids[0], "b_id": ids[1]}
            records.append(Preference(winner=winner, comment=comment, **pair, **common))
        else:
            records.append(Note(f"the label of {name[:40]} is no verdict that is understood"))
    return records


def _spans(row: Mapping[str, Any]) -> list[Note]:
    spans = any(row.get(name) for name in ("spans", "span_annotations", "instance_id_to_span_to_value"))
    return [Note("spans that annotators marked are left out")] if spans else []
