"""Pairs as Argilla's records, which `dataset.records.from_json` reads; one record a pair, with everybody's verdict.

The data set in Argilla needs `ChatField("prompt")`, `TextField("response_a")`, `TextField("response_b")`, a
`LabelQuestion("preference", labels=["response_a", "response_b", "tie", "both_bad"])` and a `TextQuestion("comment")`.
Argilla knows people by a UUID; each gets one made of the pseudonym, which stands in the metadata beside it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.exporters.pages import PAGE, effective_feedback, texts_of
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import pair_key
from rlhf_loop.records import Completion, Preference, Prompt, stable_id

PEOPLE = uuid.UUID("6a1c3c52-7c39-5a2e-9a53-0d8a1b6f2c11")  # the name space of the annotators' UUIDs


def records(store: Store, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """One record for each pair that was judged, in the order of the pairs' keys."""
    for page in effective_feedback(store, left_out):
        for record in page:
            if not isinstance(record, Preference):
                left_out[f"{record.kind} left out (no pair)"] += 1
    for pairs in _pairs(store):
        column = tables.feedback.c
        with store.database.read() as connection:
            query = sa.select(column.id).where(column.pair.in_(pairs), column.kind == "preference")
            ids = list(connection.scalars(query))
        by_pair: dict[str, list[Preference]] = {}
        found = [f for f in store.feedback(ids=ids) if isinstance(f, Preference)]
        for preference in found:
            by_pair.setdefault(pair_key(preference.a_id, preference.b_id), []).append(preference)
        prompts, completions = texts_of(store, list(found))
        for pair in pairs:
            if pair in by_pair:
                yield _record(by_pair[pair], prompts, completions)


def user_id(annotator: str) -> str:
    """The UUID that stands for an annotator."""
    return str(uuid.uuid5(PEOPLE, annotator))


def _record(
    preferences: list[Preference], prompts: dict[str, Prompt], completions: dict[str, Completion]
) -> dict[str, Any]:
    first = preferences[0]
    responses: dict[str, list[dict[str, str]]] = {"preference": [], "comment": []}
    people: dict[str, str] = {}
    for preference in preferences:
        who = user_id(preference.annotator.id)
        people[who] = preference.annotator.id
        winner = preference.winner
        if preference.a_id != first.a_id and winner in ("a", "b"):
            winner = "b" if winner == "a" else "a"
        value = {"a": "response_a", "b": "response_b"}.get(winner, winner)
        responses["preference"].append({"value": value, "user_id": who})
        if preference.comment:
            responses["comment"].append({"value": preference.comment, "user_id": who})
    prompt = prompts[first.prompt_id]
    return {
        "id": stable_id("argilla", first.prompt_id, *sorted((first.a_id, first.b_id))),
        "fields": {
            "prompt": [dict(message) for message in prompt.messages],
            "response_a": completions[first.a_id].text,
            "response_b": completions[first.b_id].text,
        },
        "metadata": {
            "prompt_id": prompt.id,
            "group": prompt.group,
            "round": first.round,
            "annotators": [f"{who}={name}" for who, name in people.items()],
        },
        "suggestions": {},
        "responses": {question: values for question, values in responses.items() if values},
        "vectors": {},
        "_server_id": None,
    }


def _pairs(store: Store) -> Iterator[list[str]]:
    """Keys of the pairs that were judged, some thousands at a time."""
    column = tables.feedback.c
    last = ""
    while True:
        query = (
            sa.select(column.pair)
            .where(column.pair > last, column.kind == "preference")
            .distinct()
            .order_by(column.pair)
            .limit(PAGE)
        )
        with store.database.read() as connection:
            found = [pair for pair in connection.scalars(query) if pair is not None]
        if not found:
            return
        last = found[-1]
        yield found
