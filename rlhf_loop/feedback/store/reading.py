"""What can be asked of the store. Records come in the order in which they were first added."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.store import artifacts, tables
from rlhf_loop.feedback.store.conditions import in_force, is_open
from rlhf_loop.feedback.store.queries import count, deleted_ids, equal, read_records
from rlhf_loop.feedback.store.table_rows import READ, record_of
from rlhf_loop.records import Artifact, Completion, Feedback, Prompt, Question, Score, Split, from_dict


class ScoredAnswer(NamedTuple):
    """An answer with the score that was given last."""

    completion_id: str
    prompt_id: str
    reward_model: str
    value: float


class Reading:
    """What the store and a transaction of it can both be asked; a transaction sees what it has added."""

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        """The connection to ask through."""
        raise NotImplementedError

    def prompts(self, *, split: Split | None = None, ids: Iterable[str] | None = None) -> list[Prompt]:
        """Prompts of a split, or with these ids, or all."""
        where = [tables.prompts.c.split == split] if split else []
        with self._reading() as connection:
            return read_records(connection, tables.prompts, Prompt, ids, *where)

    def completions(
        self,
        *,
        prompt_id: str | None = None,
        round: int | None = None,
        policy: str | None = None,
        ids: Iterable[str] | None = None,
        prompt_ids: Iterable[str] | None = None,
    ) -> list[Completion]:
        """Completions that meet all conditions, with these ids, or of these prompts, or all."""
        column = tables.completions.c
        where = equal({column.prompt_id: prompt_id, column.round: round, column.policy: policy})
        with self._reading() as connection:
            if prompt_ids is None:
                return read_records(connection, tables.completions, Completion, ids, *where)
            asked = set(prompt_ids)
            return read_records(connection, tables.completions, Completion, asked, *where, key=column.prompt_id)

    def completion_count(self) -> int:
        """How many completions there are."""
        with self._reading() as connection:
            return count(connection, tables.completions)

    def feedback(
        self,
        *,
        effective: bool = True,
        kinds: Iterable[str] | None = None,
        prompt_id: str | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[Feedback]:
        """Feedback that meets all conditions; `effective`: only what is in force."""
        column = tables.feedback.c
        where = equal({column.prompt_id: prompt_id})
        if kinds is not None:
            where.append(column.kind.in_(list(kinds)))
        if effective:
            where.append(in_force())
        with self._reading() as connection:
            return read_records(connection, tables.feedback, Feedback, ids, *where)

    def scores(self, *, completion_ids: Iterable[str] | None = None, reward_model: str | None = None) -> list[Score]:
        """Scores of these completions, by this reward model, or all."""
        column = tables.scores.c
        where = equal({column.reward_model: reward_model})
        with self._reading() as connection:
            return read_records(connection, tables.scores, Score, completion_ids, *where, key=column.completion_id)

    def artifacts(
        self, *, kind: str | None = None, ids: Iterable[str] | None = None, with_feedback: bool = True
    ) -> list[Artifact]:
        """Policies, reward models and judges; the promoted policy has `promoted` set.

        `with_feedback=False`: without the ids of what they were trained on, which may be all feedback for each of them.
        """
        where = equal({tables.artifacts.c.kind: kind})
        if ids is not None:
            where.append(tables.artifacts.c.id.in_(list(ids)))
        with self._reading() as connection:
            return artifacts.read_artifacts(connection, *where, with_feedback=with_feedback)

    def promoted_id(self) -> str | None:
        """The id of the policy that was promoted last."""
        with self._reading() as connection:
            return artifacts.promoted_id(connection)

    def promotions(self) -> list[tuple[str, float]]:
        """Every promotion so far, oldest first: policy id, and when (seconds since the epoch)."""
        column = tables.promotions.c
        with self._reading() as connection:
            rows = connection.execute(sa.select(column.artifact_id, column.promoted_at).order_by(column.number))
            return [(row.artifact_id, row.promoted_at) for row in rows]

    def questions(self, *, status: Literal["open", "answered"] | None = None) -> list[Question]:
        """Questions, the most worthwhile first."""
        column = tables.questions.c
        where = [] if status is None else [is_open() if status == "open" else column.answered]
        with self._reading() as connection:
            rows = connection.execute(
                sa.select(column.body).where(*where).order_by(column.priority.desc(), column.number)
            )
            return [from_dict(Question, json.loads(row.body)) for row in rows]

    def open_questions(self) -> int:
        """How many questions nobody, or not yet enough people, have answered."""
        with self._reading() as connection:
            return count(connection, tables.questions, is_open())

    def quarantined(self) -> list[Refused]:
        """Rows that were refused, in the order in which they were met."""
        column = tables.quarantine.c
        with self._reading() as connection:
            rows = connection.execute(sa.select(tables.quarantine).order_by(column.number))
            return [Refused(row.file, row.line, row.reason, row.raw) for row in rows]

    def deleted(self, kind: Literal["prompt", "completion", "feedback"], ids: Iterable[str]) -> set[str]:
        """Those of the ids whose records were deleted on request."""
        with self._reading() as connection:
            return deleted_ids(connection, kind, ids)

    def scored_answers(self, *, before: int) -> list[ScoredAnswer]:
        """Every answer of a round before `before` that has a score, in the order in which they were added."""
        completion, score = tables.completions.c, tables.scores.c
        last = sa.select(sa.func.max(score.number)).group_by(score.completion_id)
        query = (
            sa.select(completion.id, completion.prompt_id, score.reward_model, score.value)
            .join(tables.scores, score.completion_id == completion.id)
            .where(completion.round < before, score.number.in_(last))
            .order_by(completion.number)
        )
        with self._reading() as connection:
            return [ScoredAnswer(*row) for row in connection.execute(query)]

    def search_completions(
        self,
        *,
        text: str | None = None,
        prompt: str | None = None,
        min_score: float | None = None,
        reward_model: str | None = None,
        limit: int = 20,
    ) -> list[tuple[Completion, Score | None]]:
        """Completions that contain `text` and whose prompt contains `prompt` (in any case), the best scored first.

        The score is that of `reward_model`, or else the one given last; completions without one come at the end.
        """
        completion, score = tables.completions.c, tables.scores.c
        by_model = equal({score.reward_model: reward_model})
        latest = (
            sa.select(score.completion_id, sa.func.max(score.number).label("number"))
            .where(*by_model)
            .group_by(score.completion_id)
            .subquery()
        )
        query = (
            sa.select(tables.completions, *(score[name].label(f"score_{name}") for name in READ["scores"]))
            .outerjoin(latest, latest.c.completion_id == completion.id)
            .outerjoin(tables.scores, score.number == latest.c.number)
            .order_by(score.value.desc().nulls_last(), completion.number)
            .limit(limit)
        )
        if text:
            query = query.where(completion.text.icontains(text, autoescape=True))
        if prompt:
            query = query.join(tables.prompts, tables.prompts.c.id == completion.prompt_id)
            query = query.where(tables.prompts.c.text.icontains(prompt, autoescape=True))
        if min_score is not None:
            query = query.where(score.value >= min_score)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [(record_of(Completion, row), _score_of(row) if row.score_body else None) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many rows each table has, and how many questions are open."""
        counted = [table for table in tables.metadata.sorted_tables if table.name != "trained_on"]
        with self._reading() as connection:
            counts = {table.name: count(connection, table) for table in counted}
        return {**counts, "open_questions": self.open_questions()}


def _score_of(row: Any) -> Score:
    """The score in the columns of a row that begin so."""
    columns = {name: getattr(row, f"score_{name}") for name in READ["scores"]}
    score: Score = from_dict(Score, {**columns, **json.loads(columns.pop("body"))})
    return score
