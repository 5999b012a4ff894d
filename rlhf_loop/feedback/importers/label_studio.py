"""Label Studio's exports, of one task or one annotation a row.

    {"id", "data": {...}, "annotations": [{"result": [...], "completed_by", "lead_time"}]}      JSON
    {"prompt", "answer1", "answer2", "id": 1, "comparison": [...], "why": "...", "annotator", ...}    JSON_MIN
    annotation_id,annotator,answer1,answer2,comparison,created_at,id,...      CSV and TSV, in alphabetical order

A `pairwise` result is a preference between the task's two answers (`left` is the first of them), `rating` a rating of
an answer, `choices` a preference or a thumb, as the words say, and `ranker` a preference for each two answers in a
list; a `textarea` is the comment, or where the task shows no answer the answer itself (the template of supervised
fine-tuning): a prompt with a reference. What is said of one of several answers is known by the tag it is about
(`to_name`), where that is called as the answer's field; JSON_MIN and CSV do not say it. Cancelled annotations are
skips. Drafts and predictions are left out, and so are yes and no to a question that does not ask for something good.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.asked import PARTS, asked
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.fields import (
    Place,
    list_of,
    mapping_of,
    optional_id,
    optional_number,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.metrics import number_in, said_by_metric
from rlhf_loop.feedback.importers.tasks import ANSWERS, LISTS, Task, choice, preferences, ranking, task_of
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.feedback.importers.words import (
    Winner,
    asks_for_something_bad,
    asks_for_the_worse,
    plain,
    speaks_of_good,
    thumb_named,
    thumb_of,
    winner_of,
    words_of,
)
from rlhf_loop.records import Critique, Preference, Prompt, Rating, Skip, Thumb, stable_id

RECOGNISES = (
    'Label Studio: a JSON export of tasks, {"data", "annotations": [{"result", "completed_by"}]}, JSON_MIN or CSV'
)
REQUIRED = [("data", "annotations"), ("annotation_id", "annotator", "lead_time")]
OF_AN_ANNOTATION = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history")
KINDS = {
    "selected": "pairwise",
    "rating": "rating",
    "choices": "choices",
    "text": "textarea",
    "ranker": "ranker",
    "number": "number",
}
"""What a result of JSON_MIN holds -> its type, which is not in it."""
SHOWN = (*PARTS, *ANSWERS, *LISTS)
"""How the names of what a task shows begin; of the other columns of CSV, verdicts and comments are what was said."""

_COMMENT = re.compile(
    "why|comment|critique|reason|feedback|note|explan|rationale|justif|remark|review|improve|correct|suggest|opinion"
)


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list):
        return True
    return all(key in row for key in REQUIRED[1])


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that people gave, by question."""
    for annotation in _parts(row)[1]:
        results = annotation.get("result") if isinstance(annotation, Mapping) else None
        for result in results if isinstance(results, list) else []:
            value = result.get("value") if isinstance(result, Mapping) else None
            if not isinstance(value, Mapping):
                continue
            number = number_in(value.get("rating", value.get("number", _one_choice(value))))
            if number is not None:
                yield str(result.get("from_name")), number


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, its answers, and what each annotation says of them."""
    data, annotations = _parts(row)
    try:
        task = task_of(data, place)
    except RowError:
        demonstrations = _demonstrations(data, annotations, place)
        if not demonstrations:
            raise
        return demonstrations
    records: list[Any] = [task.prompt, *task.answers.values(), *task.notes]
    if not annotations:
        records.append(Note("a task has no annotation yet"))
    for number, value in enumerate(annotations):
        name = f"annotations[{number}]"
        records += _annotation(mapping_of(value, name), name, place, task)
    return records


def _parts(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Any]]:
    """The task's data and its annotations."""
    if "data" not in row and "annotations" not in row:
        return _of_a_row(row)
    return mapping_of(row.get("data"), "data"), list_of(row.get("annotations"), "annotations")


def _of_a_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The task's data and its annotation, of JSON_MIN or CSV.

    JSON_MIN writes the results after the data, mostly between `id` and `annotator`; a task whose data have an `id` of
    their own, and CSV, keep no order. There a name says whether it is a result or a field of the task: one that is no
    part of a question and no answer is what somebody said.
    """
    values = {name: decoded(value) for name, value in row.items() if name not in OF_AN_ANNOTATION}
    data_of_its_own = {name.removeprefix("_data_"): value for name, value in row.items() if name.startswith("_data_")}
    said = [name for name, value in values.items() if _is_result(value)]
    names = list(row)
    if "id" in names[1:] and "annotator" in names and names.index("id") < names.index("annotator"):
        between = names[names.index("id") + 1 : names.index("annotator")]
        said = [name for name in values if name in said or name in between]
    elif row.get("annotation_id") is not None:
        written = "prompt" in values and not any(plain(name).startswith((*ANSWERS, *LISTS)) for name in values)
        said = [
            name
            for name in values
            if name in said
            or f"_data_{name}" in row
            or (written and name == "instruction")  # the tag of the template of supervised fine-tuning
            or (not _is_of_task(name) and (_is_verdict(values[name]) or _COMMENT.search(words_of(name))))
        ]
    data = {name: row[name] for name in values if name not in said and not name.startswith("_data_")} | data_of_its_own
    if row.get("annotation_id") is None:
        return data, []
    results = [result for name in said for result in _results(name, values[name])]
    return data, [{**row, "id": row["annotation_id"], "completed_by": row.get("annotator"), "result": results}]


def _is_of_task(name: str) -> bool:
    """Whether a column's name is one of what a task shows."""
    return name.startswith("_data_") or plain(name).startswith(SHOWN)


def _is_verdict(value: Any) -> bool:
    if not isinstance(value, str) or value.rstrip().endswith("."):  # a label is no sentence
        return False
    return winner_of(value) is not None or thumb_of(value) is not None


def _is_result(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping) and bool(first) and set(first) <= set(KINDS)


def _results(name: str, value: Any) -> list[dict[str, Any]]:
    """What one tag says, as results of the JSON export."""
    results = []
    ones = value if isinstance(value, list) else [value]
    for one in ones:
        if isinstance(one, str):  # one choice, or one text; several choices would stand under `choices`
            chosen = len(ones) == 1 and _is_verdict(one)
            one = {"choices": [one], "text": [one]} if chosen else {"text": [one]}
        values = one if isinstance(one, Mapping) else {}
        kind = next((KINDS[key] for key in KINDS if key in values), "other")
        results.append({"from_name": name, "type": kind, "value": values})
    return results


def _demonstrations(data: Mapping[str, Any], annotations: list[Any], place: Place) -> list[Any]:
    """Prompts with the answers that people wrote to them, of tasks that show no answer."""
    fields = {plain(name): value for name, value in data.items()}
    messages = asked(fields, given=place.given, weak=True)
    prompt = prompt_of(messages, place)
    records: list[Any] = []
    for number, value in enumerate(annotations):
        name = f"annotations[{number}]"
        annotation = mapping_of(value, name)
        results = [mapping_of(one, name) for one in list_of(annotation.get("result") or [], f"{name}.result")]
        written = [one for one in results if isinstance(one.get("value"), Mapping) and "text" in one["value"]]
        texts = [text for one in written for text in _texts(one, name)]
        if annotation.get("was_cancelled"):
            records.append(Note("a task to write an answer was skipped"))
        elif texts:
            answer = "\n".join(texts)
            id = stable_id("prompt", messages, prompt.group, answer)
            records.append(replace(prompt, id=id, reference=answer))
    if any(isinstance(record, Prompt) for record in records):
        return records
    return []


def _annotation(annotation: Mapping[str, Any], name: str, place: Place, task: Task) -> list[Any]:
    answers = task.answers
    ids = [completion.id for completion in answers.values()]
    given: dict[str, Any] = {
        "external_id": optional_id(annotation, "id"),
        "created_at": time_in(annotation, "created_at"),
        "lead_time": optional_number(annotation, "lead_time"),
    }
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("id") or who.get("email")
    about: dict[str, Any] = {"prompt_id": task.prompt.id}
    of_one: dict[str, Any] = about | {"completion_id": ids[0]}
    of_pair = about | {"a_id": ids[0], "b_id": ids[1]} if len(ids) > 1 else None
    if annotation.get("was_cancelled"):
        return [Skip(**(of_pair or of_one), **said_by(place, who, "skip", *ids, **given))]
    said_of = list_of(annotation.get("result") or [], f"{name}.result")
    results = [mapping_of(value, f"{name}.result") for value in said_of]
    comments = [text for result in results if result.get("type") == "textarea" for text in _texts(result, name)]
    comment = "\n".join(comments) or None
    records: list[Any] = []
    for result in results:
        kind, value = result.get("type"), mapping_of(result.get("value"), f"{name}.result.value")
        question = str(result.get("from_name"))
        if kind == "textarea":
            continue
        if "start" in value or "chatmessage" in value:
            records.append(Note("what is said of a part of a dialogue is left out"))
            continue
        one = ids[0] if len(ids) == 1 else _one_of_several(result, task)
        chosen = number_in(_one_choice(value)) if kind == "choices" else None
        if chosen is not None and (len(ids) == 1 or not place.scales.within(question, 1, len(ids))):
            if one is None:
                records.append(Note(f"the number of {question[:40]} is left out: it is not said of which answer it is"))
            else:  # the labels of the question are numbers
                about_it = about | {"completion_id": one}
                records += said_by_metric(place, question, chosen, comment, who, about_it, given, usual=(1.0, 5.0))
            continue
        winner = _winner(kind, value, list(answers)) if len(ids) == 2 else None
        best = task.number(_one_choice(value)) if kind == "choices" and len(ids) > 2 else None
        order = ranking(_ranker(value), task) if kind == "ranker" and of_pair else None
        label = thumb_named(question, _one_choice(value)) if kind == "choices" and one else None
        score = optional_number(value, str(kind)) if kind in ("rating", "number") and one else None
        if kind == "number" and not (speaks_of_good(question) or place.scales.says(question)):
            score = None  # of words, of errors: nobody knows
        rated = None if score is None else place.scales.rated(question, score, (1.0, 5.0))
        if winner in ("a", "b") and asks_for_something_bad(question):
            best, winner = "ab".index(winner), None
        elif winner in ("a", "b") and asks_for_the_worse(question):
            winner = "b" if winner == "a" else "a"
        if best is not None:
            records += choice(task, best, place, who, question, comment, **given)
        elif winner is not None and of_pair is not None:
            common = said_by(place, who, "preference", *ids, winner, **given)
            records.append(Preference(winner=winner, comment=comment, **of_pair, **common))
        elif order is not None:
            records += preferences(task, order, place, who, question, comment, **given)
        elif one is not None and rated is not None:
            common = said_by(place, who, "rating", one, score, **given)
            by_scale: dict[str, Any] = {"score": rated.score, "scale": rated.scale}
            records.append(Rating(comment=comment, completion_id=one, **about, **by_scale, **common))
            records += rated.notes
        elif one is not None and label is not None:
            common = said_by(place, who, "thumb", one, label, **given)
            records.append(Thumb(label=label, comment=comment, completion_id=one, **about, **common))
        elif kind == "ranker":
            records.append(Note("groups of a ranker are left out: only a list in order says which answer is better"))
        else:
            records.append(Note(f"the answer to the question {question[:40]} is no verdict that is understood"))
    said = [record for record in records if not isinstance(record, Note)]
    if not said and comment is not None and not of_pair:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(comment=comment, **of_one, **common))
    elif not said:
        records.append(Note("an annotation holds no verdict" + (", only a text about both answers" if comment else "")))
    return records


def _one_of_several(result: Mapping[str, Any], task: Task) -> str | None:
    """The answer that a result is about: its tag is called as the answer's field, or says its number at the end."""
    for name in (result.get("to_name"), result.get("from_name")):
        if name in task.answers:
            return task.answers[name].id
    words = words_of(str(result.get("from_name")))
    numbers = [str(place) for place in range(1, len(task.answers) + 1)]
    number = words[-1:] if words[-1:] in numbers and not words[:-1].endswith(tuple("0123456789")) else None
    return None if number is None else list(task.answers.values())[int(number) - 1].id


def _winner(kind: Any, value: Mapping[str, Any], names: list[str]) -> Winner | None:
    first, second = names
    if kind == "pairwise":
        selected = value.get("selected")
        return "a" if selected == "left" else "b" if selected == "right" else None  # `none`: nothing was selected
    return winner_of(_one_choice(value), (first, second)) if kind == "choices" else None


def _ranker(value: Mapping[str, Any]) -> Any:
    """The order that a ranker says."""
    given = value.get("ranker")
    return next(iter(given.values())) if isinstance(given, Mapping) and len(given) == 1 else given


def _one_choice(value: Mapping[str, Any]) -> Any:
    """What was chosen, where it is one thing."""
    choices = value.get("choices")
    return choices[0] if isinstance(choices, list) and len(choices) == 1 else None


def _texts(result: Mapping[str, Any], name: str) -> list[str]:
    value = mapping_of(result.get("value"), f"{name}.result.value").get("text")
    texts = value if isinstance(value, list) else [value]
    return [text for text in (text_of(text, f"{name}.result.value.text").strip() for text in texts) if text]
