"""Label Studio's export: tasks with `data` and `annotations: [{"result": [...], "completed_by", "lead_time"}]` (JSON),
or a row an annotation, with the task's data and what each tag says side by side (JSON_MIN).

A `pairwise` result is a preference between the task's two answers (`left` is the first of them), `rating` a rating of
an answer, `choices` a preference or a thumb, as the words say; a `textarea` is the comment. What is said of one of two
answers is known by the tag it is about (`to_name`), where that is called as the answer's field; JSON_MIN does not say
it. Cancelled annotations are skips. Drafts and predictions are left out, and so are yes and no to a question that does
not ask for something good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    completion_of,
    list_of,
    mapping_of,
    messages_of,
    optional_number,
    optional_text,
    optional_time,
    prompt_before,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.words import Winner, prompt_and_answers, thumb_named, thumb_of, winner_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Completion, Critique, Preference, Prompt, Rating, Skip, Thumb

RECOGNISES = 'Label Studio: a JSON export of tasks, {"data", "annotations": [{"result", "completed_by"}]}, or JSON_MIN'
REQUIRED = [("data", "annotations"), ("annotation_id", "annotator", "lead_time")]
OF_AN_ANNOTATION = (
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history"
)  # fmt: skip
KINDS = {"selected": "pairwise", "rating": "rating", "choices": "choices", "text": "textarea"}
"""What a result of JSON_MIN holds -> its type, which is not in it."""


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        return True
    return all(key in row for key in REQUIRED[1])


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, its answers, and what each annotation says of them."""
    data: Mapping[str, Any]
    if all(key in row for key in REQUIRED[1]):
        data, annotations = _of_json_min(row)
    else:
        data, annotations = mapping_of(row.get("data"), "data"), list_of(row.get("annotations"), "annotations")
    prompt, answers = _prompt_and_answers(data, place)
    records: list[Any] = [prompt, *answers.values()]
    if not annotations:
        records.append(Note("a task has no annotation yet"))
    for number, value in enumerate(annotations):
        name = f"annotations[{number}]"
        annotation = mapping_of(value, name)
        records += _annotation(annotation, name, place, prompt.id, answers)
    return records


def _of_json_min(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task's data and its annotation; the converter writes the results between `id` and `annotator`."""
    names = list(row)
    said = [name for name in names if name not in OF_AN_ANNOTATION and _is_result(row[name])]
    if "id" in names[1:]:  # else the task's data have an `id` of their own, or the order is that of CSV
        between = names[names.index("id") + 1 : names.index("annotator")]
        said = [name for name in names if name in said or (name in between and name not in OF_AN_ANNOTATION)]
    data = {name: row[name] for name in names if name not in said and name not in OF_AN_ANNOTATION}
    if row.get("annotation_id") is None:
        return data, []
    results = [result for name in said for result in _results(name, row[name])]
    return data, [{**row, "id": row["annotation_id"], "completed_by": row.get("annotator"), "result": results}]


def _is_result(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and bool(first) and set(first) <= set(KINDS)


def _results(name: str, value: Any) -> list[dict[str, Any]]:
    """What one tag says, as results of the JSON export."""
    results = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            choice = winner_of(one) is not None or thumb_of(one) is not None
            one = {"choices": [one]} if choice else {"text": [one]}
        values = one if isinstance(one, Mapping) else {}
        kind = next((KINDS[key] for key in KINDS if key in values), "other")
        results.append({"from_name": name, "type": kind, "value": values})
    return results


def _prompt_and_answers(data: Mapping[str, Any], place: Place) -> tuple[Prompt, dict[str, Completion]]:
    """The prompt and the answers of a task; of one that shows a dialogue alone, the last turn is the answer."""
    try:
        return prompt_and_answers(data, place)
    except RowError:
        for name, value in data.items():
            last = value[-1] if isinstance(value, list) and len(value) > 1 else None
            if isinstance(last, Mapping) and last.get("role") == "assistant":
                messages, answer = prompt_before(messages_of(value, name), name)
                prompt = prompt_of(messages, place)
                return prompt, {name: completion_of(prompt, answer)}
        raise


def _annotation(
    annotation: Mapping[str, Any], name: str, place: Place, prompt_id: str, answers: Mapping[str, Completion]
) -> list[Any]:
    ids = [completion.id for completion in answers.values()]
    given: dict[str, Any] = {
        "external_id": optional_text(annotation, "id"),
        "created_at": optional_time(annotation, "created_at"),
        "lead_time": optional_number(annotation, "lead_time"),
    }
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("id") or who.get("email")
    about: dict[str, Any] = {"prompt_id": prompt_id}
    of_pair = about | dict(zip(("a_id", "b_id"), ids, strict=True)) if len(ids) == 2 else None
    if annotation.get("was_cancelled"):
        common = said_by(place, who, "skip", *ids, **given)
        return [Skip(**(of_pair or about | {"completion_id": ids[0]}), **common)]
    said_of = list_of(annotation.get("result") or [], f"{name}.result")
    results = [mapping_of(value, f"{name}.result") for value in said_of]
    comments = [text for result in results if result.get("type") == "textarea" for text in _texts(result, name)]
    comment = "\n".join(comments) or None
    records: list[Any] = []
    for result in results:
        kind, value = result.get("type"), mapping_of(result.get("value"), f"{name}.result.value")
        if kind == "textarea":
            continue
        one = ids[0] if len(ids) == 1 else _one_of_two(result, answers)
        winner = _winner(kind, value, list(answers)) if of_pair else None
        label = _label(str(result.get("from_name")), value) if kind == "choices" and one else None
        score = optional_number(value, "rating") if kind == "rating" and one else None
        if winner is not None:
            common = said_by(place, who, "preference", *ids, winner, **given)
            records.append(Preference(winner=winner, comment=comment, **of_pair, **common))  # type: ignore[arg-type]
        elif one is not None and score is not None and score >= 1:
            common = said_by(place, who, "rating", one, score, **given)
            scale = (1.0, 5.0) if score <= 5 else (1.0, 10.0)
            records.append(Rating(score=score, scale=scale, comment=comment, completion_id=one, **about, **common))
        elif one is not None and label is not None:
            common = said_by(place, who, "thumb", one, label, **given)
            records.append(Thumb(label=label, comment=comment, completion_id=one, **about, **common))
        else:
            records.append(Note(f"a result of type {str(kind)[:40]} says nothing that is understood"))
    said = [record for record in records if not isinstance(record, Note)]
    if not said and comment is not None and not of_pair:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(comment=comment, completion_id=ids[0], **about, **common))
    elif not said:
        records.append(Note("an annotation holds no verdict" + (", only a text about both answers" if comment else "")))
    return records


def _one_of_two(result: Mapping[str, Any], answers: Mapping[str, Completion]) -> str | None:
    """The answer that a result is about, where its tag is called as the answer's field."""
    about = answers.get(str(result.get("to_name")))
    return None if about is None else about.id


def _winner(kind: Any, value: Mapping[str, Any], names: list[str]) -> Winner | None:
    first, second = names
    if kind == "pairwise":
        selected = value.get("selected")
        return "a" if selected == "left" else "b" if selected == "right" else None  # `none`: nothing was selected
    choices = value.get("choices") if kind == "choices" else None
    if isinstance(choices, list) and len(choices) == 1:
        return winner_of(choices[0], (first, second))
    return None


def _label(name: str, value: Mapping[str, Any]) -> bool | None:
    choices = value.get("choices")
    return thumb_named(name, choices[0]) if isinstance(choices, list) and len(choices) == 1 else None


def _texts(result: Mapping[str, Any], name: str) -> list[str]:
    value = mapping_of(result.get("value"), f"{name}.result.value").get("text")
    texts = value if isinstance(value, list) else [value]
    return [text for text in (text_of(text, f"{name}.result.value.text").strip() for text in texts) if text]
