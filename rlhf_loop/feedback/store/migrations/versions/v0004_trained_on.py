"""From which model to which a piece of feedback was trained on, where all feedback of each model was listed."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column("artifacts", sa.Column("series", sa.BigInteger))
    table = op.create_table(
        "trained_on",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("series", sa.BigInteger, nullable=False, index=True),
        sa.Column("feedback_id", sa.String, nullable=False, index=True),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger),
    )
    connection = op.get_bind()
    listed = sa.text("SELECT feedback_id FROM artifact_feedback WHERE artifact_id = :id ORDER BY position")
    models = connection.execute(sa.text("SELECT id, number, kind FROM artifacts ORDER BY number")).all()
    for kind in dict.fromkeys(model.kind for model in models):
        spans: list[dict[str, Any]] = []
        series, so_far = 0, dict[str, dict[str, Any]]()  # what trained the model before
        for model in models:
            if model.kind != kind:
                continue
            wanted = list(dict.fromkeys(connection.scalars(listed, {"id": model.id})))
            if not wanted:
                continue
            ended = so_far.keys() - set(wanted)
            new = [id for id in wanted if id not in so_far]
            if not series or len(ended) + len(new) > len(wanted):
                series, so_far, ended, new = model.number, {}, set(), wanted
            for id in ended:
                so_far.pop(id)["until"] = model.number
            for id in new:
                so_far[id] = {"series": series, "feedback_id": id, "since": model.number, "until": None}
                spans.append(so_far[id])
            update = sa.text("UPDATE artifacts SET series = :series WHERE number = :number")
            connection.execute(update, {"series": series, "number": model.number})
        if spans:
            connection.execute(table.insert(), spans)
    op.drop_table("artifact_feedback")
