"""Argilla's records, as its versions 1 and 2 export them: `fields` and the `responses` of each person.

    {"id": "7", "fields": {"prompt", "response_a", "response_b"}, "responses": {"preference": [{"value", "user_id"}]}}
    {"fields": {...}, "responses": [{"user_id", "status", "values": {"preference": {"value": ...}}}]}

With two answers a label, or a ranking, is a preference; with one a rating is a rating and a label a thumb. A text is
the comment, or the corrected answer where its question is called so (`correction`, `edit`, `rewrite`, `improved`).
Discarded responses are skips, drafts and suggestions are left out. Argilla does not export the scale of a rating: it
is taken as 1 to 5, or as 0 to 10 for a value outside that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    mapping_of,
    optional_text,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.words import Winner, prompt_and_answers, thumb_of, winner_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Edit, Preference, Rating, Skip, Thumb

RECOGNISES = 'Argilla: records of {"fields", "responses"}, of version 1 or 2'
REQUIRED = [("fields", "responses")]
CORRECTIONS = ("correct", "edit", "rewrit", "improve", "revis")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), (Mapping, list))


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, its answers, and what each person says of them."""
    prompt, answers = prompt_and_answers(mapping_of(row.get("fields"), "fields"), place)
    external = optional_text(row, "id") or optional_text(row, "external_id")
    records: list[Any] = [prompt, *answers.values()]
    for who, (status, values) in _by_person(row.get("responses")).items():
        records += _response(who, status, values, place, prompt.id, answers, external)
    if len(records) == 1 + len(answers):
        records.append(Note("a record has no response yet"))
    return records


def _by_person(responses: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Person -> status and answers by question, from either version's export."""
    people: dict[str, tuple[str, dict[str, Any]]] = {}
    if responses is None:
        return people
    for who, status, question, value in _answers(responses):
        before = people.setdefault(who, (status, {}))
        if question:
            before[1][question] = value
    return people


def _answers(responses: Any) -> Iterator[tuple[str, str, str, Any]]:
    if isinstance(responses, Mapping):  # version 2: by question
        for question, given in responses.items():
            for value in given if isinstance(given, list) else [given]:
                one = mapping_of(value, f"responses.{question}")
                yield _who(one), str(one.get("status") or "submitted"), str(question), one.get("value")
        return
    if not isinstance(responses, list):
        raise RowError("`responses` must be a list or an object")
    for number, value in enumerate(responses):  # version 1: by person
        one = mapping_of(value, f"responses[{number}]")
        status = str(one.get("status") or "submitted")
        values = mapping_of(one.get("values") or {}, f"responses[{number}].values")
        if not values:
            yield _who(one), status, "", None
        for question, inner in values.items():
            yield _who(one), status, str(question), inner.get("value") if isinstance(inner, Mapping) else inner


def _who(response: Mapping[str, Any]) -> str:
    return optional_text(response, "user_id") or ""


def _response(
    who: str,
    status: str,
    values: Mapping[str, Any],
    place: Place,
    prompt_id: str,
    answers: Mapping[str, Any],
    external: str | None,
) -> list[Any]:
    names, ids = list(answers), [completion.id for completion in answers.values()]
    about: dict[str, Any] = {"prompt_id": prompt_id}
    of_pair = about | dict(zip(("a_id", "b_id"), ids, strict=True)) if len(ids) == 2 else None
    of_one: dict[str, Any] = about | {"completion_id": ids[0]}
    given: dict[str, Any] = {"external_id": external}
    if status == "draft":
        return [Note("a draft of a response is left out")]
    if status == "discarded":
        return [Skip(**(of_pair or of_one), **said_by(place, who, "skip", *ids, **given))]
    texts = {name: value for name, value in values.items() if isinstance(value, str) and _is_text(name, value, names)}
    corrections = {name for name in texts if any(word in name.lower() for word in CORRECTIONS)}
    comments = [text_of(text, name).strip() for name, text in texts.items() if name not in corrections]
    comment = "\n".join(text for text in comments if text) or None
    records: list[Any] = []
    for name, value in values.items():
        if name in corrections:
            if of_pair is None and texts[name].strip():
                edited = text_of(texts[name], name)
                common = said_by(place, who, "edit", ids[0], edited, **given)
                records.append(Edit(edited_completion=edited, **of_one, **common))
            continue
        if name in texts or value is None:
            continue
        winner = _winner(value, names) if of_pair else None
        label = thumb_of(value) if of_pair is None and isinstance(value, (bool, str)) else None
        if winner is not None:
            common = said_by(place, who, "preference", *ids, winner, name, **given)
            records.append(Preference(winner=winner, comment=comment, **of_pair, **common))  # type: ignore[arg-type]
        elif of_pair is None and isinstance(value, (int, float)) and not isinstance(value, bool):
            records.append(_rating(float(value), name, comment, of_one, place, who, given))
        elif label is not None:
            common = said_by(place, who, "thumb", ids[0], label, name, **given)
            records.append(Thumb(label=label, comment=comment, **of_one, **common))
        else:
            records.append(Note(f"the answer to the question {name[:40]} is no verdict that is understood"))
    said = [record for record in records if isinstance(record, (Preference, Rating, Thumb))]
    if not said and comment is not None and of_pair is None:
        common = said_by(place, who, "critique", ids[0], comment, **given)
        records.append(Critique(comment=comment, **of_one, **common))
    elif not said and not records:
        records.append(Note("a response holds no verdict"))
    return records


def _rating(
    score: float,
    name: str,
    comment: str | None,
    about: Mapping[str, Any],
    place: Place,
    who: str,
    given: Mapping[str, Any],
) -> Rating:
    if not 0 <= score <= 10:
        raise RowError(f"the rating `{name}` must be from 0 to 10, got {score:g}")
    scale = (1.0, 5.0) if 1 <= score <= 5 else (0.0, 10.0)
    common = said_by(place, who, "rating", about["completion_id"], score, name, **given)
    return Rating(score=score, scale=scale, comment=comment, **about, **common)


def _is_text(name: str, value: str, names: list[str]) -> bool:
    """Whether a text is written freely rather than the name of a label."""
    verdict = winner_of(value, (names[0], names[1])) if len(names) == 2 else thumb_of(value)
    return verdict is None


def _winner(value: Any, names: list[str]) -> Winner | None:
    """Of a label, the number of an answer, or a ranking: `[{"value": "response_a", "rank": 1}, ...]`."""
    first, second = names[0], names[1]
    if isinstance(value, list):
        ranks = {
            str(item.get("value")): item.get("rank")
            for item in value
            if isinstance(item, Mapping) and isinstance(item.get("rank"), int)
        }
        a, b = ranks.get(first), ranks.get(second)
        if a is None or b is None:
            return None
        return "tie" if a == b else "a" if a < b else "b"
    return winner_of(value, (first, second))
