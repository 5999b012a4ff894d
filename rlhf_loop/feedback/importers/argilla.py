"""Argilla's records, as its versions 1 and 2 export them: `fields` and the `responses` of each person.

    {"id": "7", "fields": {"prompt", "response_a", "response_b"}, "responses": {"preference": [{"value", "user_id"}]}}
    {"fields": {...}, "responses": [{"user_id", "status", "values": {"preference": {"value": ...}}}]}
    {"prompt", "response_a", ..., "preference.responses": [...], "preference.responses.users", "....status"}
    {"prompt", "response_a", ..., "preference": [{"user_id", "value", "status"}], "preference-suggestion", "metadata"}

The third is what `to_datasets` and `to_list(flatten=True)` give, and what goes to the hub; the last what version 1 put
there (each list may be one of three lists, too). With several answers a label
is a preference for one over the others, and a ranking a preference for each two of them; with one a rating is a rating
and a label a thumb. A text is the comment, or the corrected answer where its question is called so (`correction`,
`edit`, `rewrite`, `improved`). Discarded responses are skips, drafts and suggestions are left out; `to_json` of version
2 does not say which are which. It does not export the scale of a rating either (`scales.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.fields import Place, list_of, mapping_of, optional_id, said_by, text_of
from rlhf_loop.feedback.importers.metrics import number_in, said_by_metric
from rlhf_loop.feedback.importers.tasks import Task, choice, preferences, ranking, task_of
from rlhf_loop.feedback.importers.words import thumb_named, thumb_of, winner_of, words_of
from rlhf_loop.records import Critique, Edit, Preference, Rating, Skip, Thumb

RECOGNISES = 'Argilla: records of {"fields", "responses"}, of version 1 or 2, or of the data set it makes of them'
REQUIRED = [("fields", "responses")]
CORRECTIONS = ("correct", "edit", "rewrit", "improve", "revis")


OF_A_RECORD = frozenset(
    ("id", "external_id", "status", "_server_id", "metadata", "vectors", "inserted_at", "updated_at")
)
_FLAT = ".responses"


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), (Mapping, list)):
        return True
    if any(isinstance(key, str) and key.endswith(_FLAT) and f"{key}.users" in row for key in row):
        return True
    return bool(_questions_of_1(row))


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that people gave, by question."""
    for _, _, question, value in _answers(_responses(row)):
        number = number_in(value)
        if number is not None:
            yield question, number


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, its answers, and what each person says of them."""
    fields = _flat_fields(row) if "fields" not in row else mapping_of(row.get("fields"), "fields")
    task = task_of(fields, place)
    external = optional_id(row, "id") or optional_id(row, "external_id")
    records: list[Any] = [task.prompt, *task.answers.values()]
    people = _by_person(_responses(row))
    for who, (status, values) in people.items():
        records += _response(who, status or "submitted", values, place, task, external)
    if not people:
        records.append(Note("a record has no response yet"))
    elif any(status is None for status, _ in people.values()):
        records.append(
            Note(
                "a record does not say which of its responses are drafts or discarded: Argilla's to_json leaves that "
                "out, to_datasets says it"
            )
        )
    return [*records, *task.notes]


def _flat_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a flattened record: what is neither of a question nor of every record."""
    questions = tuple(key.partition(_FLAT)[0] for key in row if key.endswith(_FLAT))
    of_questions = tuple(f"{name}.{kind}" for name in questions for kind in ("responses", "suggestion"))
    of_1 = _questions_of_1(row)
    return {
        key: value
        for key, value in row.items()
        if key not in OF_A_RECORD
        and key not in of_1
        and not key.startswith(of_questions)
        and ".suggestion" not in key
        and "-suggestion" not in key
    }


def _questions_of_1(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The questions of a record as version 1 put it on the hub, with their responses: those of which a suggestion is a
    column too, and lists of responses."""
    questions = {}
    for key, value in row.items():
        given = decoded(value)
        if isinstance(given, Mapping) and {"user_id", "value"} <= given.keys():  # one list of each
            names = [name for name in ("user_id", "value", "status") if isinstance(given.get(name), list)]
            columns = {name: given[name] for name in names}
            if len({len(values) for values in columns.values()}) != 1:
                continue
            given = [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
        if (
            isinstance(given, list)
            and all(isinstance(one, Mapping) and {"user_id", "value", "status"} <= one.keys() for one in given)
            and (given or f"{key}-suggestion" in row or f"{key}-suggestion-metadata" in row)
        ):
            questions[key] = given
    return questions


def _responses(row: Mapping[str, Any]) -> Any:
    """The responses of a record; of a flattened one in the form of version 2, with their status."""
    if "fields" in row:
        return row.get("responses")
    of_1 = _questions_of_1(row)
    if of_1:
        return of_1
    responses: dict[str, list[dict[str, Any]]] = {}
    for key, given in row.items():
        if not key.endswith(_FLAT) or given is None:
            continue
        values = list_of(decoded(given), key)
        users = list_of(decoded(row.get(f"{key}.users") or []), f"{key}.users")
        states = list_of(decoded(row.get(f"{key}.status") or [None] * len(values)), f"{key}.status")
        if not len(values) == len(users) == len(states):
            raise RowError(f"`{key}`, its `.users` and its `.status` must be as many")
        responses[key.removesuffix(_FLAT)] = [
            {"value": value, "user_id": user, "status": state}
            for value, user, state in zip(values, users, states, strict=True)
        ]
    return responses


def _by_person(responses: Any) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Person -> status and answers by question, from every version's export."""
    people: dict[str, tuple[str | None, dict[str, Any]]] = {}
    for who, status, question, value in _answers(responses):
        before = people.setdefault(who, (status, {}))
        if question:
            before[1][question] = value
    return people


def _answers(responses: Any) -> Iterator[tuple[str, str | None, str, Any]]:
    if responses is None:
        return
    if isinstance(responses, Mapping):  # version 2: by question
        for question, given in responses.items():
            for value in given if isinstance(given, list) else [given]:
                if value is None:
                    continue
                one = mapping_of(value, f"responses.{question}")
                yield _who(one), _status(one), str(question), one.get("value")
        return
    if not isinstance(responses, list):
        raise RowError("`responses` must be a list or an object")
    for number, value in enumerate(responses):  # version 1: by person
        one = mapping_of(value, f"responses[{number}]")
        values = mapping_of(one.get("values") or {}, f"responses[{number}].values")
        if not values:
            yield _who(one), _status(one), "", None
        for question, inner in values.items():
            yield _who(one), _status(one), str(question), inner.get("value") if isinstance(inner, Mapping) else inner


def _who(response: Mapping[str, Any]) -> str:
    return optional_id(response, "user_id") or ""


def _status(response: Mapping[str, Any]) -> str | None:
    status = response.get("status")
    return str(status).lower().rpartition(".")[2] if status else None


def _response(
    who: str, status: str, values: Mapping[str, Any], place: Place, task: Task, external: str | None
) -> list[Any]:
    names, ids = list(task.answers), [completion.id for completion in task.answers.values()]
    about: dict[str, Any] = {"prompt_id": task.prompt.id}
    of_one: dict[str, Any] = about | {"completion_id": ids[0]}
    single = len(ids) == 1
    given: dict[str, Any] = {"external_id": external}
    if status in ("draft", "pending"):
        return [Note("a draft of a response is left out")]
    if status == "discarded":
        of_pair = about | {"a_id": ids[0], "b_id": ids[1]} if len(ids) > 1 else of_one
        return [Skip(**of_pair, **said_by(place, who, "skip", *ids, **given))]
    texts = {name: value for name, value in values.items() if isinstance(value, str) and _is_text(value, task)}
    corrections = {name for name in texts if any(word in name.lower() for word in CORRECTIONS)}
    comments = [text_of(text, name).strip() for name, text in texts.items() if name not in corrections]
    comment = "\n".join(text for text in comments if text) or None
    records: list[Any] = []
    for name, value in values.items():
        if name in corrections:
            if single and texts[name].strip():
                edited = text_of(texts[name], name)
                common = said_by(place, who, "edit", ids[0], edited, **given)
                records.append(Edit(edited_completion=edited, **of_one, **common))
            elif texts[name].strip():
                records.append(Note("a corrected answer is left out, for it is not said which of several it corrects"))
            continue
        if name in texts or value is None:
            continue
        number = number_in(value)
        if isinstance(value, str) and number is not None and single:  # a label that is a number
            records += said_by_metric(place, name, value, comment, who, of_one, given, usual=(1.0, 5.0))
            continue
        about_one = 0 if single else _one_of(name, task) if number is not None else None
        label = thumb_named(name, value) if single and isinstance(value, (bool, str)) else None
        order = ranking(value, task) if not single else None
        best = _best(name, value, task, place) if not single and about_one is None else None
        if order is not None:
            records += preferences(task, order, place, who, name, comment, **given)
        elif best is not None:
            records += choice(task, best, place, who, name, comment, **given)
        elif not single and len(ids) == 2 and winner_of(value, (names[0], names[1])) in ("tie", "both_bad"):
            winner: Any = winner_of(value, (names[0], names[1]))
            common = said_by(place, who, "preference", *ids, winner, name, **given)
            pair: dict[str, Any] = {"a_id": ids[0], "b_id": ids[1]}
            records.append(Preference(winner=winner, comment=comment, **about, **pair, **common))
        elif (
            number is not None
            and about_one is not None
            and (rated := place.scales.rated(name, number, (1.0, 5.0))) is not None
        ):
            common = said_by(place, who, "rating", ids[about_one], number, name, **given)
            of_it: dict[str, Any] = about | {"completion_id": ids[about_one], "comment": comment if single else None}
            records.append(Rating(score=rated.score, scale=rated.scale, **of_it, **common))
            records += rated.notes
        elif label is not None:
            common = said_by(place, who, "thumb", ids[0], label, name, **given)
            records.append(Thumb(label=label, comment=comment, **of_one, **common))
        else:
            records.append(Note(f"the answer to the question {name[:40]} is no verdict that is understood"))
    said = [record for record in records if isinstance(record, (Preference, Rating, Thumb))]
    if not said and comment is not None and single:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(comment=comment, **of_one, **common))
    elif not said and not records:
        records.append(Note("a response holds no verdict"))
    return records


def _is_text(value: str, task: Task) -> bool:
    """Whether a text is written freely rather than the name of a label, or a number."""
    if number_in(value) is not None:
        return False
    if len(task.answers) == 1:
        return thumb_of(value) is None
    first, second, *_ = task.answers
    return task.number(value) is None and winner_of(value, (first, second)) is None


def _one_of(question: str, task: Task) -> int | None:
    """Which of several answers a question is about: the answer's name is in its own (`quality_response_a`), or it ends
    as that does (`rating-2` and `response-2`)."""
    words = words_of(question)
    names = [words_of(name) for name in task.answers]
    found = [place for place, name in enumerate(names) if name in words]
    if not found:
        ends = [name.rpartition("_")[2] for name in names]
        found = [place for place, end in enumerate(ends) if words.endswith(f"_{end}") and ends.count(end) == 1]
    return found[0] if found else None


def _best(question: str, value: Any, task: Task, place: Place) -> int | None:
    """The answer that a label with its name or its number says."""
    names = list(task.answers)
    number = number_in(value)
    if number is None and not isinstance(value, str):
        return None
    if number is not None and not place.scales.within(question, 1, len(names)):
        return None  # a rating, of nobody knows which
    if len(names) > 2:
        return task.number(value)
    return {"a": 0, "b": 1}.get(str(winner_of(value, (names[0], names[1]))))
