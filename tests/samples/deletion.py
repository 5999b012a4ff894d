"""A user's conversation, feedback and run, and what of them is to be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import rlhf_loop.report
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.privacy import deletion
from rlhf_loop.feedback.privacy.deletion import DeletionReport, remember, user_key
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import (
    Annotator,
    Artifact,
    Critique,
    Edit,
    Question,
    Score,
    Thumb,
)
from samples.annotation import claim
from samples.feedback import completion, preference, prompt

SECRET = "my very private question about the garden"


REPLY = "a long answer that repeats the garden of the user"


CRITIQUE = "you never asked how large it is, which matters"


EDITED = "An answer as the user would have had it, whole."


def delete_user(store: Store, user: str, runs: list[Path]) -> DeletionReport:
    return deletion.delete_user(store, user, runs, rewrite_report=lambda run: rlhf_loop.report.write_report(run))


def talk(store: Store) -> str:
    """A user's conversation and feedback, among that of others; gives the user's key."""
    key = user_key(store, "ann@example.org")
    user = Annotator(id=key)
    store.add_prompts([prompt("other-prompt"), prompt("private-prompt", SECRET, source="chat")])
    revision = completion("revision-1", "better", "other-prompt", parent="other-answer-1", critique=CRITIQUE)
    store.add_completions(
        [completion(f"other-answer-{n}", None, "other-prompt") for n in (1, 2)]
        + [completion(f"private-answer-{n}", f"{REPLY} {n}", "private-prompt") for n in (1, 2)]
        + [revision]
    )
    about: dict[str, Any] = {"prompt_id": "private-prompt", "completion_id": "private-answer-1"}
    elsewhere: dict[str, Any] = {"prompt_id": "other-prompt", "a": "other-answer-1", "b": "other-answer-2"}
    feedback = [
        Thumb(id="feedback-thumb", label=True, comment=CRITIQUE, annotator=user, **about),
        Edit(id="feedback-edit", edited_completion=EDITED, annotator=user, **about),
        preference("feedback-elsewhere", who=key, comment=CRITIQUE, **elsewhere),
        preference("feedback-others", who="bob", **elsewhere),
        Critique(id="feedback-about", comment="the garden, again", annotator=Annotator(id="bob"), **about),
    ]
    store.add_feedback(feedback)
    store.add_scores([Score(completion_id="private-answer-1", reward_model="rm", value=1.0)])
    store.add_questions(
        [
            Question(
                id="question-1", prompt_id="private-prompt", a_id="private-answer-1", b_id="private-answer-2", round=0
            )
        ]
    )
    claim(store, "bob")
    store.quarantine([Refused("feedback.jsonl", 3, "no answer", json.dumps({"prompt": SECRET}))])
    store.quarantine_feedback([(feedback[0], "the same as another", 1)])
    store.add_artifact(Artifact(id="base", kind="policy", path="base", round=0))
    store.promote("base")
    made = {"round": 1, "path": "x"}
    store.add_artifact(Artifact(id="rm", kind="reward_model", trained_on=("feedback-elsewhere",), **made))
    store.add_artifact(Artifact(id="policy-1", kind="policy", parent="base", trained_on=("feedback-others",), **made))
    store.add_artifact(Artifact(id="policy-2", kind="policy", parent="base", round=2, path="y"))
    store.promote("policy-1")
    with store.transaction() as transaction:
        remember(transaction, key, "prompt", ["private-prompt"])
        remember(transaction, key, "completion", ["private-answer-1", "private-answer-2"])
        remember(transaction, key, "feedback", ["feedback-thumb", "feedback-edit", "feedback-elsewhere"])
        remember(transaction, key, "feedback", ["feedback-thumb"])  # again: nothing happens
        transaction.connection.execute(
            tables.answered_requests.insert().values(
                token_id="t",
                key="k",
                request_hash="h",
                status=200,
                body=json.dumps({"text": f"{REPLY} 1"}),
                answered_at=0.0,
            )
        )
    return key


def everything(store: Store) -> str:
    """All cells of all tables."""
    with store.database.read() as connection:
        rows = [tuple(row) for table in tables.metadata.sorted_tables for row in connection.execute(sa.select(table))]
    return repr(rows)


TEXTS = [SECRET, REPLY, CRITIQUE, EDITED, "the garden, again", "ann@example.org"]
