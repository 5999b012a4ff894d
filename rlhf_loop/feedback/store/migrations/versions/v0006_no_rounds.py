"""Summaries of rounds were never read: a run's own files say what became of its rounds."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.drop_table("rounds")
