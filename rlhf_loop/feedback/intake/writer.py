"""Writing batches of an import into the store: what is there is looked up, what is new inserted, both by thousands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Refused
from rlhf_loop.feedback.intake.batches import TABLES, Batch, Prepared, named_in
from rlhf_loop.feedback.intake.summary import ImportSummary
from rlhf_loop.feedback.store import question_queue, tables
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import COLUMNS, TableRow, as_columns
from rlhf_loop.records import Artifact, Question, Score, loads

NOWHERE = "which is neither before it in the file nor in the store"
DELETED = "was deleted at a person's wish and is not taken again"
EXAMPLES = 20  # rejected rows that a summary names
REASONS = 100  # different reasons that it counts


Rows = dict[str, dict[str, TableRow]]
"""Table -> id -> row."""


class BatchWriter:
    """Puts batches into a store and counts what became of their rows in `summary`."""

    def __init__(self, store: Store, summary: ImportSummary):
        self.store = store
        self.summary = summary
        self._others: list[tuple[Prepared, bool]] = []
        self._refused: list[Refused] = []

    def write(self, batch: Batch) -> None:
        """Writes what is new in a batch, all or nothing; then what it holds besides, and its rejected rows."""
        rows = batch.rows()
        with self.store.database.write() as connection:
            self._connection = connection
            gone = self._gone(rows)
            there = self._look_up(rows)
            new = self._take(batch, there, gone)
            feedback = list(new["feedback"].values())
            self._count_contradictions(feedback)
            for name in TABLES:
                values = [as_columns(name, row) for row in new[name].values()]
                if values:
                    connection.execute(tables.metadata.tables[name].insert(), values)
                self.summary.new[name] += len(values)
            self._settle(feedback)
        others, self._others = self._others, []
        for kind in (Artifact, Score, Question):
            of_kind = [(prepared, brought) for prepared, brought in others if isinstance(prepared.other, kind)]
            if of_kind:
                self._add_others(of_kind)
        refused, self._refused = self._refused, []
        if refused:
            self.summary.new["quarantined"] += self.store.quarantine(refused)

    # -- one row -----------------------------------------------------------------------------------------------------

    def _take(self, batch: Batch, there: Rows, gone: set[tuple[str, str]]) -> Rows:
        """What is new in a batch; counts each of its rows and sets aside those that are rejected."""
        new: Rows = {name: {} for name in TABLES}
        for item in batch.items:
            self.summary.rows += 1
            if isinstance(item, Refused):
                self._reject(item)
                continue
            reason = self._problem(item, there, new, gone)
            if reason:
                self._reject(_refused(item, reason))
                continue
            brought = False
            for name, row in item.rows:
                if row[0] not in there[name] and row[0] not in new[name]:
                    new[name][row[0]] = row
                    brought = True
            if item.other is not None:
                self._others.append((item, brought))
            else:
                self._count(brought)
            self._note(item)
        return new

    def _problem(self, prepared: Prepared, there: Rows, new: Rows, gone: set[tuple[str, str]]) -> str:
        """Why a row cannot be taken; empty when it can."""
        for name, row in prepared.rows:
            id = row[0]
            earlier = new[name].get(id)
            if earlier is not None and earlier != row and not _same(name, earlier, row):
                return f"the id {id} stands for something else in an earlier row; ids must be unique"
            stored = there[name].get(id)
            if stored is not None and stored != row and not _same(name, stored, row):
                return f"the id {id} stands for something else in the store; ids must be unique"
            if (name, id) in gone:
                return f"its {_singular(name)} {id} {DELETED}"
            for table, other in named_in(name, row):
                known = other in new[table] or other in there[table]
                if not known and (table, other) not in {(own, its[0]) for own, its in prepared.rows}:
                    return f"{_singular(name)} about {other}, {NOWHERE}"
        return ""

    def _reject(self, refused: Refused) -> None:
        summary = self.summary
        summary.rejected += 1
        if len(summary.examples) < EXAMPLES:
            summary.examples.append(refused)
        known = refused.reason in summary.reasons or len(summary.reasons) < REASONS
        summary.reasons[refused.reason if known else "other reasons"] += 1
        self._refused.append(refused)

    def _count(self, brought: bool) -> None:
        if brought:
            self.summary.accepted += 1
        else:
            self.summary.duplicate += 1

    def _note(self, prepared: Prepared) -> None:
        if prepared.notes:
            self.summary.notes.update(prepared.notes)
        if prepared.redacted:
            self.summary.redacted += 1
            self.summary.redactions.update(prepared.redacted)

    # -- thousands ---------------------------------------------------------------------------------------------------

    def _look_up(self, rows: Rows) -> Rows:
        """What the store holds of the records in a batch, and of those that they name."""
        wanted = {name: set(own) for name, own in rows.items()}
        for name, own in rows.items():
            for row in own.values():
                for table, id in named_in(name, row):
                    wanted[table].add(id)
        return {
            name: {row[0]: tuple(row) for row in self._rows(name, COLUMNS[name], "id", ids)}
            for name, ids in wanted.items()
        }

    def _gone(self, rows: Rows) -> set[tuple[str, str]]:
        """The records of a batch that were deleted at a person's wish: table and id."""
        ids = [id for own in rows.values() for id in own]
        found = self._rows("tombstones", ("kind", "record_id"), "record_id", ids)
        table = {_singular(name): name for name in TABLES}
        return {(table[kind], id) for kind, id in found if kind in table}

    def _rows(self, table: str, columns: Sequence[str], key: str, ids: Iterable[str]) -> Iterator[Any]:
        """Rows of a table whose `key` is among `ids`."""
        of = tables.metadata.tables[table].c
        query = sa.select(*(of[name] for name in columns))
        for part in chunks(ids):
            yield from self._connection.execute(query.where(of[key].in_(part)))

    def _count_contradictions(self, feedback: Sequence[TableRow]) -> None:
        """Counts new preferences that say the opposite of what the same person said of the same pair before."""
        said: dict[tuple[str, str], set[str]] = {}
        pairs = {row[6] for row in feedback if row[6] is not None}
        for row in self._rows("feedback", COLUMNS["feedback"], "pair", pairs):
            if row[1] == "preference":
                _is_contradiction(said, row)
        self.summary.contradictory += sum(_is_contradiction(said, row) for row in feedback if row[1] == "preference")

    def _settle(self, feedback: Sequence[TableRow]) -> None:
        """Brings the queue up to date, as `Store.add_feedback` does."""
        pairs = {row[6] for row in feedback if row[6] and row[1] in ("preference", "skip")}
        corrected = self._rows("feedback", ("pair",), "id", {row[10] for row in feedback if row[10]})
        pairs.update(row[0] for row in corrected if row[0])
        if pairs:
            question_queue.settle(self._connection, pairs)

    # -- what an export of the loop holds besides --------------------------------------------------------------------

    def _add_others(self, prepared: Sequence[tuple[Prepared, bool]]) -> None:
        """Scores, artifacts or questions; the store adds them itself, all at once unless one of them is refused."""
        kept: list[tuple[Prepared, bool]] = []
        wanted = {id for item, _ in prepared for id in _completions_of(item.other)}
        there = {completion.id for completion in self.store.completions(ids=wanted)} if wanted else set()
        for item, brought in prepared:
            missing = [id for id in _completions_of(item.other) if id not in there]
            if missing:
                name = type(item.other).__name__.lower()
                self._reject(_refused(item, f"{name} about {', '.join(missing)}, {NOWHERE}"))
            else:
                kept.append((item, brought))
        known = self._known([item.other for item, _ in kept])
        try:
            self._add([item.other for item, _ in kept])
        except UserError:  # one by one, to find out which
            for item, brought in kept:
                try:
                    self._add([item.other])
                except UserError as error:
                    self._reject(_refused(item, str(error)))
                else:
                    self._count(brought or _key(item.other) not in known)
            return
        for item, brought in kept:
            self._count(brought or _key(item.other) not in known)

    def _add(self, records: Sequence[Any]) -> None:
        if not records:
            return
        if isinstance(records[0], Score):
            self.summary.new["scores"] += self.store.add_scores(records)
        elif isinstance(records[0], Question):
            self.summary.new["questions"] += self.store.add_questions(records)
        else:
            for artifact in records:
                self.summary.new["artifacts"] += self.store.add_artifact(artifact)
                if artifact.promoted and self.store.promoted_id() is None:
                    self.store.promote(artifact.id)

    def _known(self, records: Sequence[Any]) -> set[Any]:
        """Keys of those that are in the store."""
        if not records:
            return set()
        if isinstance(records[0], Score):
            stored: Iterable[Any] = self.store.scores(completion_ids={record.completion_id for record in records})
        elif isinstance(records[0], Question):
            stored = self.store.questions()
        else:
            stored = self.store.artifacts(ids={record.id for record in records})
        return {_key(record) for record in stored}


def _same(name: str, old: TableRow, new: TableRow) -> bool:
    """Whether two rows of one id say the same, wherever they come from."""
    return old[1:] == new[1:] or _meaning(name, old) == _meaning(name, new)


def _meaning(name: str, row: TableRow) -> dict[str, Any]:
    """A row without what depends on the file that it was read from, nor a prompt's split, which may have moved."""
    values: dict[str, Any] = json.loads(row[-1])
    if name == "completions":
        # Whose critique it answers to may have been deleted since, and how it was sampled is not known of all.
        return {**as_columns(name, row), **values, "body": None, "critique": None, "token_ids": None}
    values.pop("source", None)
    if name == "prompts":
        values.pop("split", None)
    elif str(values["annotator"]["id"]).startswith("import:"):
        values["annotator"]["id"] = "import"
    return values


def _is_contradiction(said: dict[tuple[str, str], set[str]], row: TableRow) -> bool:
    """Takes note of a preference; True when the same person preferred the other one of the pair before."""
    winner = _winner(row)
    if winner is None:
        return False
    before = said.setdefault((row[6], row[7]), set())
    opposite = any(other != winner for other in before)
    before.add(winner)
    return opposite


def _winner(row: TableRow) -> str | None:
    """The id of the answer that a preference's row prefers."""
    winner = loads(row[-1])["winner"]
    id: str | None = {"a": row[4], "b": row[5]}.get(winner)
    return id


def _completions_of(record: Any) -> tuple[str, ...]:
    if isinstance(record, Score):
        return (record.completion_id,)
    return (record.a_id, record.b_id) if isinstance(record, Question) else ()


def _key(record: Any) -> Any:
    return (record.completion_id, record.reward_model) if isinstance(record, Score) else record.id


def _refused(prepared: Prepared, reason: str) -> Refused:
    raw = "" if reason.endswith(DELETED) else prepared.row.raw  # what was deleted is not kept as refused either
    return Refused(prepared.file, prepared.row.line, reason, raw)


def _singular(table: str) -> str:
    return table.removesuffix("s")
