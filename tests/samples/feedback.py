"""Small records for the tests of the store and of what goes into it and out."""

from __future__ import annotations

import gzip
import json
import os
import secrets
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from rlhf_loop.feedback.store import database
from rlhf_loop.feedback.store.location import parse_url
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import (
    Annotator,
    Artifact,
    Completion,
    Critique,
    Edit,
    Feedback,
    Implicit,
    Preference,
    Prompt,
    Question,
    Rating,
    Score,
    Skip,
    Span,
    Thumb,
)

POSTGRES = os.environ.get("RLHF_LOOP_TEST_POSTGRES")
needs_postgres = pytest.mark.skipif(
    POSTGRES is None, reason="RLHF_LOOP_TEST_POSTGRES (a URL) is not set: no PostgreSQL to test on"
)


def prompt(id: str = "p", text: str = "Why is the sky blue?", **values: object) -> Prompt:
    given = {"group": id, **values}
    return Prompt(id=id, messages=({"role": "user", "content": text},), **given)


def completion(id: str, text: str | None = None, prompt_id: str = "p", **values: object) -> Completion:
    given = {"policy": "base", "round": 0, **values}
    return Completion(id=id, prompt_id=prompt_id, text=f"answer {id}" if text is None else text, **given)


def preference(
    id: str, a: str = "a", b: str = "b", winner: str = "a", who: str = "ann", **values: object
) -> Preference:
    given = {"prompt_id": "p", **values}
    return Preference(id=id, a_id=a, b_id=b, winner=winner, annotator=Annotator(id=who), **given)


def value_counts(units: Iterable[Sequence[Hashable]]) -> np.ndarray:
    """(U, K) how often each unit was given each value, from the values that it was given."""
    units = [list(unit) for unit in units]
    values = sorted({value for unit in units for value in unit}, key=str)
    return np.array([[unit.count(value) for value in values] for unit in units])


def every_kind_of_feedback() -> list[Feedback]:
    about: dict = {"prompt_id": "p", "annotator": Annotator(id="ann")}
    return [
        preference("f1", strength=0.1 + 0.2, comment="Zu kurz – 日本 🙂", lead_time=1.5, shown_order="ba", round=1),
        preference("f2", winner="both_bad", who="rule", created_at=1e9 + 1 / 3, blind=False, rubric_version="2"),
        Rating(id="f3", completion_id="a", score=3.5, scale=(0.0, 100.0), **about),
        Thumb(id="f4", completion_id="b", label=False, external_id="x-1", **about),
        Critique(id="f5", completion_id="b", spans=(Span(start=0, end=3, label="fact", comment="No."),), **about),
        Edit(id="f6", completion_id="a", edited_completion='say "this"\nand\tthat', **about),
        Skip(id="f7", a_id="a", b_id="b", comment="cannot tell", **about),
        Implicit(id="f8", completion_id="a", action="copied", **about),
        preference("f9", winner="b", supersedes="f1", who="llm"),
    ]


def fill(store: Store) -> None:
    """One of everything."""
    held_out = prompt("q", "And the sea?", split="test", tags=("nature",), reference="It mirrors the sky.", source="f")
    store.add_prompts([prompt(), held_out])
    revision = completion("c", "better", parent="b", critique="too short", seed=7, sampling={"top_p": 0.9}, tokens=3)
    store.add_completions(
        [completion("a"), completion("b"), revision, completion("d", "", "q", finish_reason="length")]
    )
    store.add_artifact(Artifact(id="base", kind="policy", path="base", round=0))
    store.promote("base")
    store.add_feedback(every_kind_of_feedback())
    made = {"trained_on": ("f9", "f2"), "metrics": {"accuracy": 0.7}, "path": "somewhere", "round": 1}
    store.add_artifact(Artifact(id="rm", kind="reward_model", **made))
    store.add_artifact(Artifact(id="policy-1", kind="policy", parent="base", **made))
    store.promote("policy-1")
    store.add_scores(
        [
            Score(completion_id="a", reward_model="rm", value=1 / 3, spread=0.1, breakdown={"x": 1.0}, round=1),
            Score(completion_id="b", reward_model="rm", value=-2.0, round=1),
        ]
    )
    store.add_questions([Question(id="q1", prompt_id="p", a_id="c", b_id="a", round=1, priority=2.0, reason="close")])


def contents(store: Store) -> dict[str, list]:
    """Everything that an export keeps."""
    return {
        "prompts": store.prompts(),
        "completions": store.completions(),
        "feedback": store.feedback(effective=False),
        "scores": store.scores(),
        "artifacts": store.artifacts(),
        "questions": store.questions(),
        "open": store.questions(status="open"),
    }


def postgres_schema() -> Iterator[str]:
    """The URL of an empty schema of the PostgreSQL server, which is removed afterwards."""
    assert POSTGRES
    name = f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(parse_url(POSTGRES), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    url = parse_url(POSTGRES).set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={name}"})
    yield url.render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    server.dispose()


def postgres_database() -> Iterator[str]:
    """The URL of an empty database of the PostgreSQL server, for what has several schemas; removed afterwards."""
    assert POSTGRES
    name = f"test_{secrets.token_hex(6)}"
    server = sa.create_engine(parse_url(POSTGRES), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield parse_url(POSTGRES).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@contextmanager
def at_revision(url: str, revision: str) -> Iterator[sa.Connection]:
    """A connection to a new store as that revision of its schema made it."""
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        yield connection
    engine.dispose()


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON Lines, compressed where the name ends so; a text is a line as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
