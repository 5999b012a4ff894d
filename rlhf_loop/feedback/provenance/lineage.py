"""Where something came from, and what it went into.

Every answer is a dict of plain JSON types: `kind`, `id`, `record`, `made_by` (towards the people and rounds that made
it) and `went_into` (towards the models trained on it). A policy's `parents` go back to the base.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import record_of
from rlhf_loop.feedback.store.trained_on import feedback_of, models_of
from rlhf_loop.records import Completion, Score, to_dict


def lineage(store: Store, id: str) -> dict[str, Any]:
    """The lineage of a completion, a score (`COMPLETION:REWARD_MODEL`), a piece of feedback or an artifact.

    - completion: `made_by` policy, its parents, round, the completion it revises and the critique; `went_into` scores,
      feedback about it, revisions, artifacts trained on that feedback.
    - score: `made_by` completion, reward model and the feedback that trained it; `went_into` the policies of its
      round (which scores made which pair is in that round's training data).
    - feedback: `made_by` annotator, round, source, completions, what it corrects; `went_into` corrections, artifacts.
    - artifact: `made_by` parents, round, feedback; `went_into` children, completions it wrote, scores it gave.

    Raises `UserError` for an unknown id.
    """
    with store.database.read() as connection:
        for find in (_artifact, _completion, _feedback, _score):
            found = find(connection, id)
            if found is not None:
                return found
    raise UserError(f"{id} is not the id of a completion, a score, a piece of feedback or an artifact in this store")


def _artifact(connection: sa.Connection, id: str) -> dict[str, Any] | None:
    row = connection.execute(sa.select(tables.artifacts).where(tables.artifacts.c.id == id)).first()
    if row is None:
        return None
    children = sa.select(tables.artifacts.c.id).where(tables.artifacts.c.parent == id)
    wrote = sa.select(tables.completions.c.id).where(tables.completions.c.policy == id)
    scored = sa.select(tables.scores.c.completion_id).where(tables.scores.c.reward_model == id)
    promoted = sa.select(tables.promotions.c.promoted_at).where(tables.promotions.c.artifact_id == id)
    return {
        "kind": row.kind,
        "id": id,
        "record": json.loads(row.body),
        "made_by": {
            "round": row.round,
            "parents": _parents(connection, row.parent),
            "feedback": _list(connection, feedback_of(id)),
        },
        "went_into": {
            "artifacts": _list(connection, children.order_by(tables.artifacts.c.number)),
            "completions": _list(connection, wrote.order_by(tables.completions.c.number)),
            "scored_completions": _list(connection, scored.order_by(tables.scores.c.number)),
            "promoted_at": _list(connection, promoted.order_by(tables.promotions.c.number)),
        },
    }


def _completion(connection: sa.Connection, id: str) -> dict[str, Any] | None:
    row = connection.execute(sa.select(tables.completions).where(tables.completions.c.id == id)).first()
    if row is None:
        return None
    record = to_dict(record_of(Completion, row))
    score, feedback = tables.scores.c, tables.feedback.c
    scores = connection.execute(
        sa.select(score.reward_model, score.value, score.round).where(score.completion_id == id).order_by(score.number)
    )
    about = sa.or_(feedback.completion_id == id, feedback.a_id == id, feedback.b_id == id)
    feedback_ids = _list(connection, sa.select(feedback.id).where(about).order_by(feedback.number))
    revisions = sa.select(tables.completions.c.id).where(tables.completions.c.parent == id)
    return {
        "kind": "completion",
        "id": id,
        "record": record,
        "made_by": {
            "policy": row.policy,
            "parents": _parents(connection, row.policy)[1:],
            "round": row.round,
            "prompt": row.prompt_id,
            "revises": row.parent,
            "critique": record["critique"],
        },
        "went_into": {
            "scores": [dict(s._mapping) for s in scores],
            "feedback": feedback_ids,
            "revisions": _list(connection, revisions.order_by(tables.completions.c.number)),
            "artifacts": list(models_of(connection, sa.select(feedback.id).where(about))),
        },
    }


def _feedback(connection: sa.Connection, id: str) -> dict[str, Any] | None:
    feedback = tables.feedback.c
    row = connection.execute(sa.select(tables.feedback).where(feedback.id == id)).first()
    if row is None:
        return None
    record = json.loads(row.body)
    ids = [c for c in dict.fromkeys((row.completion_id, row.a_id, row.b_id)) if c]
    wrote = sa.select(tables.completions.c.id, tables.completions.c.policy).where(tables.completions.c.id.in_(ids))
    corrections = sa.select(feedback.id).where(feedback.supersedes == id).order_by(feedback.number)
    return {
        "kind": record["kind"],
        "id": id,
        "record": record,
        "made_by": {
            "annotator": record["annotator"],
            "round": row.round,
            "source": record["source"],
            "prompt": row.prompt_id,
            "completions": [dict(c._mapping) for c in connection.execute(wrote)],
            "corrects": row.supersedes,
        },
        "went_into": {
            "corrected_by": _list(connection, corrections),
            "artifacts": list(models_of(connection, [id])),
        },
    }


def _score(connection: sa.Connection, id: str) -> dict[str, Any] | None:
    completion_id, _, reward_model = id.partition(":")
    score = tables.scores.c
    key = sa.and_(score.completion_id == completion_id, score.reward_model == reward_model)
    row = connection.execute(sa.select(tables.scores).where(key)).first()
    if row is None:
        return None
    artifact = tables.artifacts.c
    policies = sa.select(artifact.id).where(artifact.kind == "policy", artifact.round == row.round)
    return {
        "kind": "score",
        "id": id,
        "record": to_dict(record_of(Score, row)),
        "made_by": {
            "completion": completion_id,
            "reward_model": reward_model,
            "reward_model_feedback": _list(connection, feedback_of(reward_model)),
            "round": row.round,
        },
        "went_into": {"policies_of_its_round": _list(connection, policies.order_by(artifact.number))},
    }


def _parents(connection: sa.Connection, id: str | None) -> list[str]:
    """`id` and what it was made from, back to the first; a circle (which only a damaged store has) ends it."""
    chain: list[str] = []
    while id is not None and id not in chain:
        chain.append(id)
        id = connection.scalar(sa.select(tables.artifacts.c.parent).where(tables.artifacts.c.id == id))
    return chain


def _list(connection: sa.Connection, query: sa.Select[Any]) -> list[Any]:
    return list(connection.scalars(query))
