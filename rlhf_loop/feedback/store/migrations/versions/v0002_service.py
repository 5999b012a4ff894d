"""Several people a question, tokens, deletion."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("questions", sa.Column("overlap", sa.Integer, nullable=False, server_default="1"))
    op.drop_column("questions", "claimed_by")  # leases are short: those that are held now may be taken again
    op.drop_column("questions", "claimed_until")
    op.create_table(
        "leases",
        sa.Column("question_id", sa.String, sa.ForeignKey("questions.id"), primary_key=True),
        sa.Column("annotator", sa.String, primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "tokens",
        _number(),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("hash", sa.String, nullable=False, unique=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "answered_requests",
        sa.Column("token_id", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("request_hash", sa.String, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("answered_at", sa.Float, nullable=False),
    )
    op.create_table(
        "user_records",
        sa.Column("user", sa.String, primary_key=True),
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("record_id", sa.String, primary_key=True, index=True),
    )
    op.create_table(
        "tombstones",
        _number(),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("record_id", sa.String, nullable=False),
        sa.Column("user", sa.String, nullable=False, index=True),
        sa.Column("deleted_at", sa.Float, nullable=False),
    )
    op.create_index("tombstones_key", "tombstones", ["kind", "record_id"], unique=True)
    op.create_table(
        "settings",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _number() -> sa.Column[int]:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column("number", number, primary_key=True, autoincrement=True)
