"""A writing transaction: what is added in it is kept all together, or not at all.

Everything that is added is kept: adding an identical record again changes nothing, adding a different one under the
same id is a `UserError`. What was deleted on request is not taken again.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.files.rows import line_of
from rlhf_loop.feedback.store import artifacts, question_queue, tables
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.feedback.store.queries import deleted_ids, insert_rows, known_ids, read_records
from rlhf_loop.feedback.store.reading import Reading
from rlhf_loop.feedback.store.same_record import (
    check_same_score,
    check_score,
    conflict,
    without_file,
    without_source,
    without_token_ids,
)
from rlhf_loop.feedback.store.table_rows import (
    TableRow,
    about,
    completion_row,
    feedback_row,
    pair_key,
    prompt_row,
    question_row,
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
    Thumb,
    stable_id,
)

T = TypeVar("T")

ONE_ANSWER = (Rating, Thumb, Critique, Edit, Implicit)  # what answers no question about a pair


class Transaction(Reading):
    """Adds records, and can be asked what the store can be asked. Each `add_*` returns how many records were new."""

    def __init__(self, connection: sa.Connection, store_name: str):
        self.connection = connection
        self._store_name = store_name

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        return nullcontext(self.connection)

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Adds prompts. One that differs only in the file it came from is the same prompt."""
        records = self._not_deleted(prompts, lambda p: [("prompt", p.id)])
        return self._add(tables.prompts, Prompt, records, prompt_row, without_source)

    def add_completions(self, completions: Iterable[Completion]) -> int:
        """Adds completions; their prompts must be there, or are a `UserError`."""
        records = self._not_deleted(completions, lambda c: [("completion", c.id), ("prompt", c.prompt_id)])
        self._check_known(tables.prompts, (c.prompt_id for c in records), "completions")
        return self._add(tables.completions, Completion, records, completion_row, without_token_ids)

    def add_feedback(self, feedback: Iterable[Feedback]) -> int:
        """Adds feedback; a preference also answers the queued questions about its pair.

        Records that differ only in the file they came from (`source`, and the annotator where it stands for the
        file) are the same. Prompts and completions that they name must be there, or are a `UserError`.
        """
        records = self._not_deleted(
            feedback,
            lambda f: [("feedback", f.id), ("prompt", f.prompt_id), *(("completion", id) for id in about(f))],
        )
        self._check_known(tables.prompts, (f.prompt_id for f in records), "feedback")
        self._check_known(tables.completions, (id for f in records for id in about(f)), "feedback")
        new = self._add(tables.feedback, Feedback, records, feedback_row, without_file)
        self._settle(records)
        return new

    def add_new_feedback(self, feedback: Iterable[Feedback]) -> int:
        """The same for feedback that the caller has just made: with new ids, about answers read in this transaction."""
        records = list(feedback)
        new = insert_rows(self.connection, tables.feedback, map(feedback_row, records))
        self._settle(records)
        return new

    def add_scores(self, scores: Iterable[Score]) -> int:
        """Adds scores, one for each completion and reward model; their completions must be there.

        A score that is there already may differ by rounding (2%: the scores of bfloat16 models do, from machine to
        machine) and in its round; the first one is kept.
        """
        records = list(scores)
        for score in records:
            check_score(score)
        records = self._not_deleted(records, lambda s: [("completion", s.completion_id)])
        self._check_known(tables.completions, (s.completion_id for s in records), "scores")
        wanted: dict[tuple[str, str], Score] = {}
        for score in records:
            check_same_score(wanted.setdefault((score.completion_id, score.reward_model), score), score)
        for model in dict.fromkeys(model for _, model in wanted):
            ids = [completion_id for completion_id, other in wanted if other == model]
            for score in self.scores(completion_ids=ids, reward_model=model):
                check_same_score(score, wanted.pop((score.completion_id, model)))
        return insert_rows(self.connection, tables.scores, map(score_row, wanted.values()))

    def add_artifact(self, artifact: Artifact) -> int:
        """Adds a policy or reward model. Where it lies and how it measured may be brought up to date by adding it
        again; what it was made from may not. `promoted` is not taken from it: see `promote`."""
        return artifacts.add_artifact(self.connection, artifact)

    def promote(self, artifact_id: str) -> bool:
        """Makes a policy the promoted one; the one before stays in `promotions`. False when it was it already."""
        return artifacts.promote(self.connection, artifact_id)

    def add_questions(self, questions: Iterable[Question]) -> int:
        """Queues pairs to be judged; one whose pair `overlap` people have already judged counts as answered."""
        records = self._not_deleted(
            questions, lambda q: [("prompt", q.prompt_id), ("completion", q.a_id), ("completion", q.b_id)]
        )
        self._check_known(tables.prompts, (q.prompt_id for q in records), "questions")
        self._check_known(tables.completions, (id for q in records for id in (q.a_id, q.b_id)), "questions")
        new = self._add(tables.questions, Question, records, question_row)
        if new:
            question_queue.settle(self.connection, {pair_key(q.a_id, q.b_id) for q in records})
        return new

    def quarantine(self, refused: Iterable[Refused]) -> int:
        """Keeps rows that were refused, with file, line, reason and raw text, so that they can be mended."""
        return self._quarantine({stable_id("quarantine", *row): row for row in refused})

    def quarantine_feedback(self, refused: Iterable[tuple[Feedback, str, int]]) -> int:
        """Notes feedback that failed validation: the record, why, and before which round. It stays in the store.

        What failed for the same reason before an earlier round is not noted again.
        """
        rows = {}
        for record, reason, before_round in refused:
            file, _, line = record.source.rpartition(":")
            place = (file, int(line)) if file and line.isdigit() else (record.source, 0)
            why = f"validation before round {before_round}: {reason}"
            rows[stable_id("validation", record.id, reason)] = Refused(*place, why, line_of(record))
        return self._quarantine(rows)

    def attempt(self, work: Callable[[Transaction], T]) -> tuple[T | None, Exception | None]:
        """What a piece of work gives, or its error, which undoes that piece alone.

        Raises where it is the database that fails: the transaction is lost then.
        """
        savepoint = self.connection.begin_nested()
        try:
            result = work(self)
        except Exception as error:
            if isinstance(error, DBAPIError) and not isinstance(error, (IntegrityError, DataError)):
                raise
            savepoint.rollback()
            return None, error
        savepoint.commit()
        return result, None

    # -- how -----------------------------------------------------------------------------------------------------------

    def _not_deleted(self, records: Iterable[T], names: Callable[[T], list[tuple[str, str]]]) -> list[T]:
        """Without the records that name (kind, id) something deleted on request: it is not taken again."""
        listed = list(records)
        if self.connection.scalar(sa.select(tables.tombstones.c.number).limit(1)) is None:
            return listed
        wanted: dict[str, set[str]] = defaultdict(set)
        for record in listed:
            for kind, id in names(record):
                wanted[kind].add(id)
        deleted = {(kind, id) for kind, ids in wanted.items() for id in deleted_ids(self.connection, kind, ids)}
        if not deleted:
            return listed
        kept = [record for record in listed if deleted.isdisjoint(names(record))]
        if len(kept) < len(listed):
            warnings.warn(
                f"{self._store_name}: {len(listed) - len(kept)} of {len(listed)} records are not taken, because "
                "they, or what they are about, were deleted on request",
                stacklevel=4,
            )
        return kept

    def _check_known(self, table: sa.Table, ids: Iterable[str], of: str) -> None:
        wanted = dict.fromkeys(ids)
        known = known_ids(self.connection, table, wanted)
        missing = [id for id in wanted if id not in known]
        if missing:
            raise UserError(
                f"{of} cannot be added: {len(missing)} {table.name} that they name are not in {self._store_name}, such "
                f"as {', '.join(missing[:3])}. Add the {table.name} first"
            )

    def _add(
        self,
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
                raise conflict(table.name, record.id, other, record)
        stored = read_records(self.connection, table, record_type, wanted)
        for record in stored:
            if record != wanted[record.id] and identity(record) != identity(wanted[record.id]):
                raise conflict(table.name, record.id, record, wanted[record.id])
        known = {record.id for record in stored}
        return insert_rows(self.connection, table, (to_row(record) for id, record in wanted.items() if id not in known))

    def _settle(self, records: Sequence[Feedback]) -> None:
        """Brings the questions up to date that feedback answers, or answered until it was superseded."""
        pairs = {pair_key(f.a_id, f.b_id) for f in records if isinstance(f, (Preference, Skip)) and f.a_id and f.b_id}
        superseded = [f.supersedes for f in records if f.supersedes and not isinstance(f, ONE_ANSWER)]
        column = tables.feedback.c
        for chunk in chunks(superseded):
            earlier = sa.select(column.pair).where(column.id.in_(chunk), column.pair.is_not(None))
            pairs.update(self.connection.scalars(earlier))
        if pairs:
            question_queue.settle(self.connection, pairs)

    def _quarantine(self, refused: Mapping[str, Refused]) -> int:
        now = time.time()
        known = known_ids(self.connection, tables.quarantine, refused)
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
            self.connection.execute(tables.quarantine.insert(), rows)
        return len(rows)
