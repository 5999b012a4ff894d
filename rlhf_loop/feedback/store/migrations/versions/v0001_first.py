"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "prompts",
        _number(),
        _id(),
        sa.Column("split", sa.String, nullable=False, index=True),
        sa.Column("group_name", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "completions",
        _number(),
        _id(),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("policy", sa.String, nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False, index=True),
        sa.Column("parent", sa.String, index=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "feedback",
        _number(),
        _id(),
        sa.Column("kind", sa.String, nullable=False, index=True),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("completion_id", sa.String, sa.ForeignKey("completions.id"), index=True),
        sa.Column("a_id", sa.String, sa.ForeignKey("completions.id"), index=True),
        sa.Column("b_id", sa.String, sa.ForeignKey("completions.id"), index=True),
        sa.Column("pair", sa.String, index=True),
        sa.Column("annotator", sa.String, nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("supersedes", sa.String, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "scores",
        _number(),
        sa.Column("completion_id", sa.String, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("reward_model", sa.String, nullable=False, index=True),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("scores_key", "scores", ["completion_id", "reward_model"], unique=True)
    op.create_table(
        "artifacts",
        _number(),
        _id(),
        sa.Column("kind", sa.String, nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("parent", sa.String, index=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "artifact_feedback",
        sa.Column("artifact_id", sa.String, sa.ForeignKey("artifacts.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("feedback_id", sa.String, nullable=False, index=True),
    )
    op.create_table(
        "promotions",
        _number(),
        sa.Column("artifact_id", sa.String, sa.ForeignKey("artifacts.id"), nullable=False),
        sa.Column("promoted_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rounds",
        _number(),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("rounds_key", "rounds", ["run", "round"], unique=True)
    op.create_table(
        "questions",
        _number(),
        _id(),
        sa.Column("prompt_id", sa.String, sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("a_id", sa.String, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("b_id", sa.String, sa.ForeignKey("completions.id"), nullable=False),
        sa.Column("pair", sa.String, nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("answered", sa.Boolean, nullable=False),
        sa.Column("claimed_by", sa.String),
        sa.Column("claimed_until", sa.Float),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("questions_queue", "questions", ["answered", "priority", "number"])
    op.create_table(
        "quarantine",
        _number(),
        _id(),
        sa.Column("file", sa.String, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("raw", sa.Text, nullable=False),
        sa.Column("refused_at", sa.Float, nullable=False),
    )


def _number() -> sa.Column[int]:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column("number", number, primary_key=True, autoincrement=True)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String, nullable=False, unique=True)
