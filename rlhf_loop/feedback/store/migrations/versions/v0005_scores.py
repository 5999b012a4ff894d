"""Scores are looked up by their completion: an index by reward model cost more room than it was worth."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_index("ix_scores_reward_model", "scores")
