"""The store: every prompt, completion, piece of feedback, score, artifact and question, and how they hang together.

    with Store.open("feedback.db") as store:
        store.add_prompts(prompts)
        store.add_feedback(feedback)
        pairs = store.feedback(kinds=["preference"])

Everything that is added is kept: adding an identical record again changes nothing, adding a different one under the
same id is a `UserError`. Each `add_*` is one transaction, does all or nothing, and returns how many records were new.
Reads give records in the order in which they were first added.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.files.rows import line_of
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.store import question_queue, tables, trained_on
from rlhf_loop.feedback.store.conditions import in_force, is_open
from rlhf_loop.feedback.store.database import CHUNK, Database, chunks
from rlhf_loop.feedback.store.keys import signing_key
from rlhf_loop.feedback.store.table_rows import (
    READ,
    AnyFeedback,
    TableRow,
    about,
    artifact_row,
    as_columns,
    completion_row,
    dump,
    feedback_row,
    pair_key,
    prompt_row,
    question_row,
    record_of,
    records_of,
    score_row,
    storable,
)
from rlhf_loop.records import (
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
    Split,
    Thumb,
    from_dict,
    stable_id,
    to_dict,
)

T = TypeVar("T")

ONE_ANSWER = (Rating, Thumb, Critique, Edit, Implicit)  # what answers no question about a pair


class Store:
    """What the loop remembers, in SQLite or PostgreSQL. Usable from several threads and processes at once."""

    def __init__(self, database: Database):
        self.database = database

    @classmethod
    def open(cls, url: str | Path, *, create: bool = True, busy_seconds: float = 30.0) -> Store:
        """Opens a store and brings its schema up to date.

        `url`: `:memory:`, a path, `sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        `create=False`: a SQLite file that is not there is an error. `busy_seconds`: how long to wait for others.
        Raises `UserError` for whatever keeps it from being opened: no permission, a damaged file, a lock that stays,
        a missing driver, a server that cannot be reached, a schema newer than this code.
        """
        return cls(Database(url, busy_seconds, create))

    @cached_property
    def pseudonym_key(self) -> bytes:
        """What makes the names of applications' users into pseudonyms; not to be asked for within a transaction."""
        return signing_key(self.database, "user_key")

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- adding ------------------------------------------------------------------------------------------------------

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Adds prompts. One that differs only in the file it came from is the same prompt."""
        with self.database.write() as connection:
            return self.add_prompts_within(connection, prompts)

    def add_prompts_within(self, connection: sa.Connection, prompts: Iterable[Prompt]) -> int:
        """The same in a writing transaction of the caller's (`store.database.write()`), with what else is in it."""
        records = self._not_deleted(connection, prompts, lambda p: [("prompt", p.id)])
        return self._add(connection, tables.prompts, Prompt, records, prompt_row, _without_source)

    def deleted_within(self, connection: sa.Connection, kind: str, ids: Iterable[str]) -> set[str]:
        """Those of the ids (`kind`: prompt, completion, feedback) whose records were deleted on request."""
        stone, found = tables.tombstones.c, set[str]()
        for chunk in chunks(ids):
            found.update(
                connection.scalars(sa.select(stone.record_id).where(stone.kind == kind, stone.record_id.in_(chunk)))
            )
        return found

    def set_splits(self, prompts: Iterable[Prompt]) -> int:
        """Moves stored prompts to the split that these have; returns how many moved.

        Raises `UserError` for a prompt that would leave `train` after feedback on it has trained something, which
        would put it on both sides of the evaluation.
        """
        with self.database.write() as connection:
            wanted = {prompt.id: prompt.split for prompt in prompts}
            stored = {p.id: p for p in _read(connection, tables.prompts, Prompt, wanted)}
            _require(stored, wanted, "prompts", self.database.name)
            moving = {id: replace(p, split=wanted[id]) for id, p in stored.items() if p.split != wanted[id]}
            leaving = [id for id in moving if stored[id].split == "train"]
            used = sa.select(tables.feedback.c.prompt_id).join(
                tables.trained_on, tables.trained_on.c.feedback_id == tables.feedback.c.id
            )
            for chunk in chunks(leaving):
                trained = connection.scalar(used.where(tables.feedback.c.prompt_id.in_(chunk)).limit(1))
                if trained is not None:
                    raise UserError(
                        f"prompt {trained} cannot move from train to {wanted[trained]}: feedback on it has already "
                        "trained a model. Start a new store for another split"
                    )
            for id, prompt in moving.items():
                columns = as_columns("prompts", prompt_row(prompt))
                values = {name: columns[name] for name in ("split", "body")}
                connection.execute(tables.prompts.update().where(tables.prompts.c.id == id).values(values))
            return len(moving)

    def add_completions(self, completions: Iterable[Completion]) -> int:
        """Adds completions; their prompts must be there, or are a `UserError`."""
        with self.database.write() as connection:
            return self.add_completions_within(connection, completions)

    def add_completions_within(self, connection: sa.Connection, completions: Iterable[Completion]) -> int:
        """The same in a writing transaction of the caller's."""
        records = self._not_deleted(connection, completions, lambda c: [("completion", c.id), ("prompt", c.prompt_id)])
        self._check_known(connection, tables.prompts, (c.prompt_id for c in records), "prompts", "completions")
        return self._add(connection, tables.completions, Completion, records, completion_row, _without_token_ids)

    def add_feedback(self, feedback: Iterable[AnyFeedback]) -> int:
        """Adds feedback; a preference also answers the queued questions about its pair.

        Records that differ only in the file they came from (`source`, and the annotator where it stands for the
        file) are the same. Prompts and completions that they name must be there, or are a `UserError`.
        """
        with self.database.write() as connection:
            return self.add_feedback_within(connection, feedback)

    def add_feedback_within(self, connection: sa.Connection, feedback: Iterable[AnyFeedback]) -> int:
        """The same in a writing transaction of the caller's."""
        records = self._not_deleted(
            connection,
            feedback,
            lambda f: [("feedback", f.id), ("prompt", f.prompt_id), *(("completion", id) for id in about(f))],
        )
        self._check_known(connection, tables.prompts, (f.prompt_id for f in records), "prompts", "feedback")
        named = (id for f in records for id in about(f))
        self._check_known(connection, tables.completions, named, "completions", "feedback")
        new = self._add(connection, tables.feedback, Feedback, records, feedback_row, _without_file)
        self._settle(connection, records)
        return new

    def add_new_feedback_within(self, connection: sa.Connection, feedback: Iterable[AnyFeedback]) -> int:
        """The same for feedback that the caller has just made: with new ids, about answers read in this transaction."""
        records = list(feedback)
        new = _insert(connection, tables.feedback, map(feedback_row, records))
        self._settle(connection, records)
        return new

    def _settle(self, connection: sa.Connection, records: Sequence[AnyFeedback]) -> None:
        """Brings the questions up to date that feedback answers, or answered until it was superseded."""
        pairs = {pair_key(f.a_id, f.b_id) for f in records if isinstance(f, (Preference, Skip)) and f.a_id and f.b_id}
        superseded = [f.supersedes for f in records if f.supersedes and not isinstance(f, ONE_ANSWER)]
        for chunk in chunks(superseded):
            column = tables.feedback.c
            pairs.update(
                connection.scalars(sa.select(column.pair).where(column.id.in_(chunk), column.pair.is_not(None)))
            )
        if pairs:
            question_queue.settle(connection, pairs)

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Adds scores, one for each completion and reward model; their completions must be there.

        A score that is there already may differ by rounding (2%: the scores of bfloat16 models do, from machine to
        machine) and in its round; the first one is kept.
        """
        records = list(scores)
        for score in records:
            if not math.isfinite(score.value):
                raise UserError(
                    f"reward model {score.reward_model} gives completion {score.completion_id} the score "
                    f"{score.value}; check the reward model, training may have diverged (lower its learning rate)"
                )
        with self.database.write() as connection:
            records = self._not_deleted(connection, records, lambda s: [("completion", s.completion_id)])
            known = (s.completion_id for s in records)
            self._check_known(connection, tables.completions, known, "completions", "scores")
            return _add_scores(connection, records)

    def add_artifact(self, artifact: Artifact) -> int:
        """Adds a policy or reward model. Where it lies and how it measured may be brought up to date by adding it
        again; what it was made from may not. `promoted` is not taken from it: see `promote`."""
        with self.database.write() as connection:
            stored = _artifacts(connection, tables.artifacts.c.id == artifact.id)
            if stored:
                gone = self.deleted_within(connection, "feedback", [*stored[0].trained_on, *artifact.trained_on])
                if _made_from(stored[0], gone) != _made_from(artifact, gone):
                    raise _conflict("artifact", artifact.id, stored[0], artifact)
                update = tables.artifacts.update().where(tables.artifacts.c.id == artifact.id)
                connection.execute(update.values(body=artifact_row(artifact)[-1]))
                return 0
            _insert(connection, tables.artifacts, [artifact_row(artifact)])
            trained_on.note(connection, artifact.id, artifact.kind, artifact.trained_on)
            return 1

    def promote(self, artifact_id: str) -> bool:
        """Makes a policy the promoted one; the one before stays in `promotions`. False when it was it already."""
        with self.database.write() as connection:
            found = _artifacts(connection, tables.artifacts.c.id == artifact_id)
            if not found or found[0].kind != "policy":
                what = f"is a {found[0].kind}" if found else "is not in the store"
                known = connection.scalars(sa.select(tables.artifacts.c.id).where(tables.artifacts.c.kind == "policy"))
                raise UserError(f"{artifact_id} {what}; policies that are: {', '.join(known) or 'none yet'}")
            if _promoted_id(connection) == artifact_id:
                return False
            connection.execute(tables.promotions.insert().values(artifact_id=artifact_id, promoted_at=time.time()))
            return True

    def save_round(self, run: str, number: int, summary: Mapping[str, Any]) -> None:
        """Keeps the summary of round `number` of a run; a rerun of the round replaces it."""
        key = sa.and_(tables.rounds.c.run == run, tables.rounds.c.round == number)
        with self.database.write() as connection:
            connection.execute(tables.rounds.delete().where(key))
            row = {"run": run, "round": number, "body": dump(dict(summary))}
            connection.execute(tables.rounds.insert(), [row])

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Queues pairs to be judged; one whose pair `overlap` people have already judged counts as answered."""
        with self.database.write() as connection:
            records = self._not_deleted(
                connection,
                questions,
                lambda q: [("prompt", q.prompt_id), ("completion", q.a_id), ("completion", q.b_id)],
            )
            self._check_known(connection, tables.prompts, (q.prompt_id for q in records), "prompts", "questions")
            named = (id for q in records for id in (q.a_id, q.b_id))
            self._check_known(connection, tables.completions, named, "completions", "questions")
            new = self._add(connection, tables.questions, Question, records, question_row)
            if new:
                question_queue.settle(connection, {pair_key(q.a_id, q.b_id) for q in records})
            return new

    def claim_questions(self, who: str, n: int = 1, seconds: float = 600.0) -> list[Question]:
        """Leases up to `n` open questions to `who`, the most worthwhile first.

        A question goes to at most `overlap` people. None gets it twice, nor one that they have skipped, until
        `seconds` have passed or the lease was released.
        """
        with self.database.write(exclusive=False) as connection:
            return question_queue.claim(connection, who, n, seconds)

    def release_questions(self, who: str) -> int:
        """Gives back what `who` holds and has not answered; returns how many."""
        with self.database.write() as connection:
            return question_queue.release(connection, who)

    def quarantine(self, refused: Iterable[Refused | tuple[str, int, str, str]]) -> int:
        """Keeps rows that were refused, with file, line, reason and raw text, so that they can be mended."""
        rows = [Refused(*row) for row in refused]
        return self._quarantine({stable_id("quarantine", *row): row for row in rows})

    def quarantine_feedback(self, refused: Iterable[tuple[AnyFeedback, str, int]]) -> int:
        """Notes feedback that failed validation: the record, why, and before which round. It stays in the store.

        What failed for the same reason before an earlier round is not noted again.
        """
        rows = {}
        for record, reason, round in refused:
            file, _, line = record.source.rpartition(":")
            place = (file, int(line)) if file and line.isdigit() else (record.source, 0)
            why = f"validation before round {round}: {reason}"
            rows[stable_id("validation", record.id, reason)] = Refused(*place, why, line_of(record))
        return self._quarantine(rows)

    # -- reading -----------------------------------------------------------------------------------------------------

    def prompts(self, *, split: Split | None = None, ids: Iterable[str] | None = None) -> list[Prompt]:
        """Prompts of a split, or with these ids, or all."""
        where = [tables.prompts.c.split == split] if split else []
        with self.database.read() as connection:
            return _read(connection, tables.prompts, Prompt, ids, *where)

    def prompts_within(self, connection: sa.Connection, ids: Iterable[str]) -> list[Prompt]:
        """Prompts with these ids, in a transaction of the caller's."""
        return _read(connection, tables.prompts, Prompt, ids)

    def completions(
        self,
        *,
        prompt_id: str | None = None,
        round: int | None = None,
        policy: str | None = None,
        ids: Iterable[str] | None = None,
        unscored_by: str | None = None,
    ) -> list[Completion]:
        """Completions that meet all conditions; `unscored_by`: without a score of that reward model."""
        column = tables.completions.c
        where = _equal({column.prompt_id: prompt_id, column.round: round, column.policy: policy})
        if unscored_by is not None:
            scored = sa.select(tables.scores.c.number).where(
                tables.scores.c.completion_id == column.id, tables.scores.c.reward_model == unscored_by
            )
            where.append(sa.not_(scored.exists()))
        with self.database.read() as connection:
            return _read(connection, tables.completions, Completion, ids, *where)

    def completion_count(self) -> int:
        """How many completions there are."""
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(tables.completions)) or 0

    def feedback(
        self,
        *,
        effective: bool = True,
        kinds: Iterable[str] | None = None,
        since: float | None = None,
        up_to_round: int | None = None,
        prompt_id: str | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[AnyFeedback]:
        """Feedback that meets all conditions.

        `effective`: without what a later record supersedes. `since`: made at or after that time (seconds since the
        epoch). `up_to_round`: of that round and those before.
        """
        column = tables.feedback.c
        where = _equal({column.prompt_id: prompt_id})
        if kinds is not None:
            where.append(column.kind.in_(list(kinds)))
        if since is not None:
            where.append(column.created_at >= since)
        if up_to_round is not None:
            where.append(column.round <= up_to_round)
        if effective:
            where.append(in_force())
        with self.database.read() as connection:
            return _read(connection, tables.feedback, Feedback, ids, *where)

    def scores(self, *, completion_ids: Iterable[str] | None = None, reward_model: str | None = None) -> list[Score]:
        """Scores of these completions, by this reward model, or all."""
        column = tables.scores.c
        where = _equal({column.reward_model: reward_model})
        with self.database.read() as connection:
            return _read(connection, tables.scores, Score, completion_ids, *where, key=column.completion_id)

    def artifacts(
        self, *, kind: str | None = None, ids: Iterable[str] | None = None, with_feedback: bool = True
    ) -> list[Artifact]:
        """Policies, reward models and judges; the promoted policy has `promoted` set.

        `with_feedback=False`: without the ids of what they were trained on, which may be all feedback for each of them.
        """
        where = _equal({tables.artifacts.c.kind: kind})
        if ids is not None:
            where.append(tables.artifacts.c.id.in_(list(ids)))
        with self.database.read() as connection:
            return _artifacts(connection, *where, with_feedback=with_feedback)

    def promoted_policy(self) -> Artifact | None:
        """The policy that was promoted last, without what it was trained on; None before any was."""
        with self.database.read() as connection:
            current = _promoted_id(connection)
            found = _artifacts(connection, tables.artifacts.c.id == current, with_feedback=False) if current else []
            return found[0] if found else None

    def promoted_id(self) -> str | None:
        """The id of the policy that was promoted last."""
        with self.database.read() as connection:
            return _promoted_id(connection)

    def promotions(self) -> list[tuple[str, float]]:
        """Every promotion so far, oldest first: policy id, and when (seconds since the epoch)."""
        column = tables.promotions.c
        with self.database.read() as connection:
            rows = connection.execute(sa.select(column.artifact_id, column.promoted_at).order_by(column.number))
            return [(row.artifact_id, row.promoted_at) for row in rows]

    def rounds(self, run: str) -> dict[int, dict[str, Any]]:
        """Summaries of a run's rounds, by number."""
        column = tables.rounds.c
        with self.database.read() as connection:
            rows = connection.execute(
                sa.select(column.round, column.body).where(column.run == run).order_by(column.round)
            )
            return {row.round: json.loads(row.body) for row in rows}

    def questions(
        self, *, status: Literal["open", "answered"] | None = None, claimed_by: str | None = None
    ) -> list[Question]:
        """Questions, the most worthwhile first; `claimed_by`: those on which somebody holds a lease now."""
        column = tables.questions.c
        where = [] if status is None else [is_open() if status == "open" else column.answered]
        if claimed_by is not None:
            lease = tables.leases.c
            live = sa.and_(lease.annotator == claimed_by, lease.until > time.time())
            where.append(column.id.in_(sa.select(lease.question_id).where(live)))
        with self.database.read() as connection:
            rows = connection.execute(
                sa.select(column.body).where(*where).order_by(column.priority.desc(), column.number)
            )
            return [from_dict(Question, json.loads(row.body)) for row in rows]

    def open_questions(self) -> int:
        """How many questions nobody, or not yet enough people, have answered."""
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(tables.questions).where(is_open())) or 0

    def quarantined(self) -> list[Refused]:
        """Rows that were refused, in the order in which they were met."""
        column = tables.quarantine.c
        with self.database.read() as connection:
            rows = connection.execute(sa.select(tables.quarantine).order_by(column.number))
            return [Refused(row.file, row.line, row.reason, row.raw) for row in rows]

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
        by_model = _equal({score.reward_model: reward_model})
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
        with self.database.read() as connection:
            return [
                (
                    record_of(Completion, row),
                    _score_of(row) if row.score_body else None,
                )
                for row in connection.execute(query)
            ]

    def counts(self) -> dict[str, int]:
        """How many rows each table has, and how many questions are open."""
        counted = [t for t in tables.metadata.sorted_tables if t.name != "trained_on"]
        with self.database.read() as connection:
            counts = {t.name: connection.scalar(sa.select(sa.func.count()).select_from(t)) or 0 for t in counted}
        return {**counts, "open_questions": self.open_questions()}

    def lineage(self, id: str) -> dict[str, Any]:
        """What made a completion, a score (`COMPLETION:REWARD_MODEL`), a piece of feedback or an artifact, and what
        it went into; see `rlhf_loop.feedback.provenance.lineage`. Raises `UserError` for an unknown id."""
        with self.database.read() as connection:
            return lineage(connection, id)

    # -- how -----------------------------------------------------------------------------------------------------------

    def _not_deleted(
        self, connection: sa.Connection, records: Iterable[T], names: Callable[[T], list[tuple[str, str]]]
    ) -> list[T]:
        """Without the records that name (kind, id) something deleted on request: it is not taken again."""
        listed = list(records)
        if connection.scalar(sa.select(tables.tombstones.c.number).limit(1)) is None:
            return listed
        wanted: dict[str, set[str]] = defaultdict(set)
        for record in listed:
            for kind, id in names(record):
                wanted[kind].add(id)
        gone = {(kind, id) for kind, ids in wanted.items() for id in self.deleted_within(connection, kind, ids)}
        if not gone:
            return listed
        kept = [record for record in listed if gone.isdisjoint(names(record))]
        if len(kept) < len(listed):
            warnings.warn(
                f"{self.database.name}: {len(listed) - len(kept)} of {len(listed)} records are not taken, because "
                "they, or what they are about, were deleted on request",
                stacklevel=4,
            )
        return kept

    def _add(
        self,
        connection: sa.Connection,
        table: sa.Table,
        record_type: Any,
        records: Sequence[Any],
        to_row: Callable[[Any], TableRow],
        identity: Callable[[Any], Any] = lambda record: record,
    ) -> int:
        """Inserts what is missing; refuses a record whose id stands for another one."""
        wanted: dict[str, Any] = {}
        for record in records:
            other = wanted.setdefault(record.id, record)
            if other is not record and identity(other) != identity(record):
                raise _conflict(table.name, record.id, other, record)
        stored = _read(connection, table, record_type, wanted)
        for record in stored:
            if record != wanted[record.id] and identity(record) != identity(wanted[record.id]):
                raise _conflict(table.name, record.id, record, wanted[record.id])
        known = {record.id for record in stored}
        return _insert(connection, table, (to_row(record) for id, record in wanted.items() if id not in known))

    def _quarantine(self, refused: Mapping[str, Refused]) -> int:
        now = time.time()
        with self.database.write() as connection:
            known = _known(connection, tables.quarantine, refused)
            rows = [
                {
                    "id": id,
                    "file": storable(row.file),
                    "line": row.line,
                    "reason": storable(row.reason),
                    "raw": storable(row.raw),
                    "refused_at": now,
                }
                for id, row in refused.items()
                if id not in known
            ]
            if rows:
                connection.execute(tables.quarantine.insert(), rows)
            return len(rows)

    def _check_known(self, connection: sa.Connection, table: sa.Table, ids: Iterable[str], what: str, of: str) -> None:
        wanted = dict.fromkeys(ids)
        known = _known(connection, table, wanted)
        missing = [id for id in wanted if id not in known]
        if missing:
            raise UserError(
                f"{of} cannot be added: {len(missing)} {what} that they name are not in {self.database.name}, such as "
                f"{', '.join(missing[:3])}. Add the {what} first"
            )


def _made_from(artifact: Artifact, deleted: set[str]) -> Artifact:
    """What must not change of an artifact: what it was made from, as far as that is still there."""
    learned = tuple(sorted({id for id in artifact.trained_on if id not in deleted}))
    return replace(artifact, path="", metrics={}, promoted=False, trained_on=learned)


def _without_source(prompt: Prompt) -> Prompt:
    return replace(prompt, source="")


def _without_token_ids(completion: Completion) -> Completion:
    """A text is the same whether or not it is known how it was sampled."""
    return replace(completion, token_ids=None)


def _without_file(feedback: AnyFeedback) -> AnyFeedback:
    """Without what depends on the name of the file that it was imported from."""
    stands_for_file = feedback.annotator.id.startswith("import:")
    annotator = replace(feedback.annotator, id="import") if stands_for_file else feedback.annotator
    return replace(feedback, source="", annotator=annotator)


def _add_scores(connection: sa.Connection, scores: Sequence[Score]) -> int:
    wanted: dict[tuple[str, str], Score] = {}
    for score in scores:
        _check_same_score(wanted.setdefault((score.completion_id, score.reward_model), score), score)
    for model in dict.fromkeys(model for _, model in wanted):
        ids = [completion_id for completion_id, other in wanted if other == model]
        column = tables.scores.c
        where = column.reward_model == model
        for score in _read(connection, tables.scores, Score, ids, where, key=column.completion_id):
            _check_same_score(score, wanted.pop((score.completion_id, model)))
    return _insert(connection, tables.scores, map(score_row, wanted.values()))


def _score_of(row: Any) -> Score:
    """The score in the columns of a row that begin so."""
    columns = {name: getattr(row, f"score_{name}") for name in READ["scores"]}
    score: Score = from_dict(Score, {**columns, **json.loads(columns.pop("body"))})
    return score


def _check_same_score(old: Score, new: Score) -> None:
    if not math.isclose(old.value, new.value, rel_tol=0.02, abs_tol=0.02):
        raise UserError(
            f"reward model {new.reward_model} gave completion {new.completion_id} the score {old.value:g} before and "
            f"{new.value:g} now; a reward model that has changed needs an id of its own"
        )


def _artifacts(connection: sa.Connection, *where: sa.ColumnElement[bool], with_feedback: bool = True) -> list[Artifact]:
    current = _promoted_id(connection)
    found = []
    rows = connection.execute(sa.select(tables.artifacts).where(*where).order_by(tables.artifacts.c.number)).all()
    for row in rows:
        learned = connection.scalars(trained_on.feedback_of(row.id)).all() if with_feedback else ()
        values = {**json.loads(row.body), "trained_on": learned, "promoted": row.id == current}
        found.append(from_dict(Artifact, values))
    return found


def _promoted_id(connection: sa.Connection) -> str | None:
    column = tables.promotions.c
    return connection.scalar(sa.select(column.artifact_id).order_by(column.number.desc()).limit(1))


def _read(
    connection: sa.Connection,
    table: sa.Table,
    record_type: Any,
    ids: Iterable[str] | None,
    *where: sa.ColumnElement[bool],
    key: sa.ColumnElement[Any] | None = None,
) -> list[Any]:
    """Records that meet `where` and, when `ids` are given, whose `key` (default: id) is among them."""
    columns = [table.c[name] for name in ("number", *READ.get(table.name, ("body",)))]
    query = sa.select(*columns).where(*where).order_by(table.c.number)
    if ids is None:
        parts = connection.execute(query.execution_options(yield_per=CHUNK)).partitions()
        return [record for rows in parts for record in records_of(record_type, rows)]
    column = table.c.id if key is None else key
    found = [row for chunk in chunks(ids) for row in connection.execute(query.where(column.in_(chunk)))]
    return records_of(record_type, sorted(found, key=lambda row: row.number))


def _known(connection: sa.Connection, table: sa.Table, ids: Iterable[str]) -> set[str]:
    known: set[str] = set()
    for chunk in chunks(ids):
        known.update(connection.scalars(sa.select(table.c.id).where(table.c.id.in_(chunk))))
    return known


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterable[TableRow]) -> int:
    named = [as_columns(table.name, row) for row in rows]
    if named:
        connection.execute(table.insert(), named)
    return len(named)


def _require(stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str, name: str) -> None:
    missing = [id for id in wanted if id not in stored]
    if missing:
        raise UserError(f"{len(missing)} {what} are not in {name}, such as {', '.join(missing[:3])}; add them first")


def _conflict(what: str, id: str, old: Any, new: Any) -> UserError:
    before, after = to_dict(old), to_dict(new)
    differ = [name for name in after if before.get(name) != after[name]]
    first = differ[0] if differ else "kind"
    if isinstance(new, Prompt) and differ in (["split"], ["split", "source"]):
        return UserError(
            f"prompt {id} is in the split {old.split} and would also be in {new.split}: what is learned from would be "
            "evaluated on. Take it out of one of the files, or use another store for another split"
        )
    return UserError(
        f"{what}: the id {id} is already taken by a record whose {', '.join(differ)} differ ({first} is "
        f"{str(before.get(first))[:80]!r}, now {str(after.get(first))[:80]!r}). Records are never overwritten: give "
        "the new one an id of its own, and for feedback set `supersedes` to the old id"
    )


def _equal(wanted: Mapping[Any, Any]) -> list[sa.ColumnElement[bool]]:
    return [column == value for column, value in wanted.items() if value is not None]
