"""Label Studio's JSON export: tasks with `data` and `annotations: [{"result": [...], "completed_by", "lead_time"}]`.

A `pairwise` result is a preference between the task's two answers (`left` is the first of them, none a tie), `rating` a
rating of the one answer, `choices` a thumb or, with two answers, a preference, as its words say; a `textarea` is the
comment. Cancelled annotations are skips. Drafts and predictions are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    list_of,
    mapping_of,
    optional_number,
    optional_text,
    optional_time,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.words import Winner, prompt_and_answers, thumb_of, winner_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Preference, Rating, Skip, Thumb

RECOGNISES = 'Label Studio: a JSON export of tasks, {"data", "annotations": [{"result", "completed_by"}]}'
REQUIRED = [("data", "annotations")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, its answers, and what each annotation says of them."""
    prompt, answers = prompt_and_answers(mapping_of(row.get("data"), "data"), place)
    records: list[Any] = [prompt, *answers.values()]
    annotations = list_of(row.get("annotations"), "annotations")
    if not annotations:
        records.append(Note("a task has no annotation yet"))
    for number, value in enumerate(annotations):
        name = f"annotations[{number}]"
        annotation = mapping_of(value, name)
        records += _annotation(annotation, name, place, prompt.id, answers)
    return records


def _annotation(
    annotation: Mapping[str, Any], name: str, place: Place, prompt_id: str, answers: Mapping[str, Any]
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
    results = [mapping_of(value, f"{name}.result") for value in list_of(annotation.get("result"), f"{name}.result")]
    comments = [text for result in results if result.get("type") == "textarea" for text in _texts(result, name)]
    comment = "\n".join(comments) or None
    records: list[Any] = []
    for result in results:
        kind, value = result.get("type"), mapping_of(result.get("value"), f"{name}.result.value")
        if kind == "textarea":
            continue
        winner = _winner(kind, value, list(answers)) if of_pair else None
        label = _label(value) if kind == "choices" and not of_pair else None
        if winner is not None:
            common = said_by(place, who, "preference", *ids, winner, **given)
            records.append(Preference(winner=winner, comment=comment, **of_pair, **common))  # type: ignore[arg-type]
        elif kind == "rating" and not of_pair:
            score = optional_number(value, "rating")
            if score is None:
                raise RowError(f"`{name}.result` has a rating without a number")
            common = said_by(place, who, "rating", ids[0], score, **given)
            records.append(Rating(score=score, comment=comment, completion_id=ids[0], **about, **common))
        elif label is not None:
            common = said_by(place, who, "thumb", ids[0], label, **given)
            records.append(Thumb(label=label, comment=comment, completion_id=ids[0], **about, **common))
        else:
            records.append(Note(f"a result of type {str(kind)[:40]} says nothing that is understood"))
    said = [record for record in records if not isinstance(record, Note)]
    if not said and comment is not None and not of_pair:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(comment=comment, completion_id=ids[0], **about, **common))
    elif not said:
        records.append(Note("an annotation holds no verdict" + (", only a text about both answers" if comment else "")))
    return records


def _winner(kind: Any, value: Mapping[str, Any], names: list[str]) -> Winner | None:
    first, second = names
    if kind == "pairwise":
        selected = value.get("selected")
        if selected in (None, "", "none"):
            return "tie"
        return winner_of(selected, (first, second))
    choices = value.get("choices") if kind == "choices" else None
    if isinstance(choices, list) and len(choices) == 1:
        return winner_of(choices[0], (first, second))
    return None


def _label(value: Mapping[str, Any]) -> bool | None:
    choices = value.get("choices")
    return thumb_of(choices[0]) if isinstance(choices, list) and len(choices) == 1 else None


def _texts(result: Mapping[str, Any], name: str) -> list[str]:
    value = mapping_of(result.get("value"), f"{name}.result.value").get("text")
    texts = value if isinstance(value, list) else [value]
    return [text for text in (text_of(text, f"{name}.result.value.text").strip() for text in texts) if text]
