"""Indexes on columns that are mostly empty hold the rows where they are not; one that nothing was found by is gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table, name in (("completions", "parent"), ("feedback", "completion_id"), ("feedback", "supersedes")):
        there = sa.text(f"{name} IS NOT NULL")
        op.drop_index(f"ix_{table}_{name}", table)
        op.create_index(f"ix_{table}_{name}", table, [name], sqlite_where=there, postgresql_where=there)
    op.drop_index("ix_feedback_round", "feedback")
