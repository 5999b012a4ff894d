"""The tables of the store.

Each row holds its record as JSON (`body`) beside the columns that one queries by, so a record that gains a field needs
no new column. `number` is the order of arrival, in which everything is read back. A change here needs a migration in
`migrations/versions` and a new `SCHEMA`; a test holds the two against each other.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

SCHEMA = "0006"
"""The newest migration."""

VERSION_TABLE = "rlhf_loop_version"

metadata = MetaData()


def _number() -> Column[int]:
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _id() -> Column[str]:
    return Column("id", String, nullable=False, unique=True)


def _where_set(table: str, name: str) -> Index:
    """An index on a column that is empty in most rows: it holds the others only."""
    there = sa.text(f"{name} IS NOT NULL")
    return Index(f"ix_{table}_{name}", name, sqlite_where=there, postgresql_where=there)


prompts = Table(
    "prompts",
    metadata,
    _number(),
    _id(),
    Column("split", String, nullable=False, index=True),
    Column("group_name", String, nullable=False),
    Column("text", Text, nullable=False),  # all turns, to search in
    Column("body", Text, nullable=False),
)

completions = Table(
    "completions",
    metadata,
    _number(),
    _id(),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False, index=True),
    Column("policy", String, nullable=False, index=True),
    Column("round", Integer, nullable=False, index=True),
    Column("parent", String),
    Column("text", Text, nullable=False),
    Column("body", Text, nullable=False),  # the other fields
    _where_set("completions", "parent"),
)

feedback = Table(
    "feedback",
    metadata,
    _number(),
    _id(),
    Column("kind", String, nullable=False, index=True),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False, index=True),
    Column("completion_id", String, ForeignKey("completions.id")),  # of feedback about one completion
    Column("a_id", String, ForeignKey("completions.id"), index=True),
    Column("b_id", String, ForeignKey("completions.id"), index=True),
    Column("pair", String, index=True),  # both ids in alphabetical order: the pair however it was shown
    Column("annotator", String, nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("supersedes", String),
    Column("body", Text, nullable=False),
    _where_set("feedback", "completion_id"),
    _where_set("feedback", "supersedes"),
)

scores = Table(
    "scores",
    metadata,
    _number(),
    Column("completion_id", String, ForeignKey("completions.id"), nullable=False),
    Column("reward_model", String, nullable=False),
    Column("value", Float, nullable=False),
    Column("round", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Index("scores_key", "completion_id", "reward_model", unique=True),
)

artifacts = Table(
    "artifacts",
    metadata,
    _number(),
    _id(),
    Column("kind", String, nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("parent", String, index=True),
    Column("series", BigInteger),  # the number of the first model of its series; null: it was trained on nothing
    Column("body", Text, nullable=False),  # without `trained_on` and `promoted`
)

trained_on = Table(  # see trained_on.py
    "trained_on",
    metadata,
    _number(),
    Column("series", BigInteger, nullable=False, index=True),
    Column("feedback_id", String, nullable=False, index=True),  # stays when the feedback is deleted
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger),
)

promotions = Table(
    "promotions",
    metadata,
    _number(),
    Column("artifact_id", String, ForeignKey("artifacts.id"), nullable=False),
    Column("promoted_at", Float, nullable=False),
)

questions = Table(
    "questions",
    metadata,
    _number(),
    _id(),
    Column("prompt_id", String, ForeignKey("prompts.id"), nullable=False),
    Column("a_id", String, ForeignKey("completions.id"), nullable=False),
    Column("b_id", String, ForeignKey("completions.id"), nullable=False),
    Column("pair", String, nullable=False, index=True),
    Column("round", Integer, nullable=False),
    Column("priority", Float, nullable=False),
    Column("overlap", Integer, nullable=False, default=1),  # how many people are to judge it
    Column("answered", Boolean, nullable=False, default=False),  # by as many
    Column("body", Text, nullable=False),
    Index("questions_queue", "answered", "priority", "number"),
)

leases = Table(
    "leases",
    metadata,
    Column("question_id", String, ForeignKey("questions.id"), primary_key=True),
    Column("annotator", String, primary_key=True),
    Column("since", Float, nullable=False),  # seconds since the epoch
    Column("until", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    _number(),
    _id(),
    Column("hash", String, nullable=False, unique=True),  # SHA-256 of the token, which is random
    Column("role", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

answered_requests = Table(
    "answered_requests",
    metadata,
    Column("token_id", String, primary_key=True),
    Column("key", String, primary_key=True),  # the client's idempotency key
    Column("request_hash", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("answered_at", Float, nullable=False),
)

user_records = Table(  # what was said by or to whom, so that it can be deleted
    "user_records",
    metadata,
    Column("user", String, primary_key=True),  # a keyed hash of the application's name for the user
    Column("kind", String, primary_key=True),  # prompt, completion, feedback
    Column("record_id", String, primary_key=True, index=True),
)

tombstones = Table(
    "tombstones",
    metadata,
    _number(),
    Column("kind", String, nullable=False),
    Column("record_id", String, nullable=False),
    Column("user", String, nullable=False, index=True),
    Column("deleted_at", Float, nullable=False),
    Index("tombstones_key", "kind", "record_id", unique=True),
)

settings = Table(  # of the store itself, such as the key that users' names are hashed with
    "settings",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", Text, nullable=False),
)

quarantine = Table(
    "quarantine",
    metadata,
    _number(),
    _id(),
    Column("file", String, nullable=False),
    Column("line", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("raw", Text, nullable=False),
    Column("refused_at", Float, nullable=False),
)
