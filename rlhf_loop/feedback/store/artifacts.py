"""Policies, reward models and judges: what they were made from, and which policy was promoted when."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tables, trained_on
from rlhf_loop.feedback.store.queries import deleted_ids, insert_rows, known_ids
from rlhf_loop.feedback.store.same_record import conflict, made_from
from rlhf_loop.feedback.store.table_rows import artifact_row
from rlhf_loop.records import Artifact, from_dict


def read_artifacts(
    connection: sa.Connection, *where: sa.ColumnElement[bool], with_feedback: bool = True
) -> list[Artifact]:
    """Artifacts that meet `where`, in the order in which they were added; see `Reading.artifacts`."""
    current = promoted_id(connection)
    found = []
    rows = connection.execute(sa.select(tables.artifacts).where(*where).order_by(tables.artifacts.c.number)).all()
    for row in rows:
        learned = connection.scalars(trained_on.feedback_of(row.id)).all() if with_feedback else ()
        values = {**json.loads(row.body), "trained_on": learned, "promoted": row.id == current}
        found.append(from_dict(Artifact, values))
    return found


def promoted_id(connection: sa.Connection) -> str | None:
    """The id of the policy that was promoted last."""
    column = tables.promotions.c
    return connection.scalar(sa.select(column.artifact_id).order_by(column.number.desc()).limit(1))


def add_artifact(connection: sa.Connection, artifact: Artifact) -> int:
    """Adds an artifact or brings it up to date; see `Transaction.add_artifact`."""
    stored = read_artifacts(connection, tables.artifacts.c.id == artifact.id)
    if stored:
        deleted = deleted_ids(connection, "feedback", [*stored[0].trained_on, *artifact.trained_on])
        deleted |= _gone_elsewhere(connection, set(stored[0].trained_on).difference(artifact.trained_on))
        if made_from(stored[0], deleted) != made_from(artifact, deleted):
            raise conflict("artifact", artifact.id, stored[0], artifact)
        update = tables.artifacts.update().where(tables.artifacts.c.id == artifact.id)
        connection.execute(update.values(body=artifact_row(artifact)[-1]))
        return 0
    insert_rows(connection, tables.artifacts, [artifact_row(artifact)])
    trained_on.note(connection, artifact.id, artifact.kind, artifact.trained_on)
    return 1


def _gone_elsewhere(connection: sa.Connection, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are of borrowed feedback (`ID@SOURCE`): what its store deletes has no tombstone here."""
    borrowed = {id for id in ids if "@" in id}
    return borrowed - known_ids(connection, tables.feedback, borrowed)


def promote(connection: sa.Connection, artifact_id: str) -> bool:
    """Makes a policy the promoted one; see `Transaction.promote`."""
    artifact = tables.artifacts.c
    kind = connection.scalar(sa.select(artifact.kind).where(artifact.id == artifact_id))
    if kind != "policy":
        what = f"is a {kind}" if kind else "is not in the store"
        known = connection.scalars(sa.select(artifact.id).where(artifact.kind == "policy"))
        raise UserError(f"{artifact_id} {what}; policies that are: {', '.join(known) or 'none yet'}")
    if promoted_id(connection) == artifact_id:
        return False
    connection.execute(tables.promotions.insert().values(artifact_id=artifact_id, promoted_at=time.time()))
    return True
