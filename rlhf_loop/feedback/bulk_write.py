"""Writing batches of an import into the store: what is there is looked up, what is new is inserted, both by thousands.

SQLite takes a statement of many rows at once.
PostgreSQL takes them by COPY.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from rlhf_loop.errors import UserError
from rlhf_loop.feedback import queue, tables
from rlhf_loop.feedback.bulk_batches import TABLES, Batch, Prepared, named_in
from rlhf_loop.feedback.rows import Refused
from rlhf_loop.feedback.store import Store
from rlhf_loop.feedback.table_rows import COLUMNS, TableRow
from rlhf_loop.records import Artifact, Question, Score, loads

if TYPE_CHECKING:
    from rlhf_loop.feedback.bulk import ImportSummary

VALUES = 32_766  # that SQLite takes in a statement
CACHE_KIB = 384 * 1024  # of SQLite, while an import runs: its indexes are written in random order
NOWHERE = "which is neither before it in the file nor in the store"
DELETED = "was deleted at a person's wish and is not taken again"
EXAMPLES = 20  # rejected rows that a summary names
REASONS = 100  # different reasons that it counts


class BatchWriter:
    """Puts batches into a store and counts what became of their rows in `summary`."""

    def __init__(self, store: Store, summary: ImportSummary):
        self.store = store
        self.summary = summary
        self._connection: sa.Connection | None = None
        self._others: list[tuple[Prepared, bool]] = []
        self._refused: list[Refused] = []
        self._expect_new = store.database.is_sqlite  # the store held nothing of the last batch

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is there when it ends, all or nothing; rejected rows go to the quarantine then."""
        with self.store.database.write_many(CACHE_KIB) as connection:
            self._connection = connection
            self._questions = self._any(tables.questions)
            self._deleted = self._any(tables.tombstones)
            yield
        self._connection = None
        others, self._others = self._others, []
        for kind in (Artifact, Score, Question):
            of_kind = [(prepared, brought) for prepared, brought in others if isinstance(prepared.other, kind)]
            if of_kind:
                self._add_others(of_kind)
        refused, self._refused = self._refused, []
        if refused:
            self.summary.new["quarantined"] += self.store.quarantine(refused)

    def write(self, batch: Batch) -> None:
        """Writes what is new in a batch; to be called inside `transaction`."""
        sound = batch.regular and bool(batch.rows["feedback"]) and not self._deleted
        if sound and self._expect_new and self._insert_if_all_new(batch):
            self._count_regular(batch, batch.rows)
            return
        there = self._look_up(batch)
        self._expect_new = self.store.database.is_sqlite and not any(there.values())
        same = all(_same(name, row, batch.rows[name][id]) for name in TABLES for id, row in there[name].items() if row)
        if sound and same and not there["feedback"]:
            new = {
                name: {id: row for id, row in rows.items() if id not in there[name]} if there[name] else rows
                for name, rows in batch.rows.items()
            }
            self._count_regular(batch, new)
        else:
            new = self._row_by_row(batch, there)
        earlier = self._rows("feedback", COLUMNS["feedback"], "pair", batch.pairs)
        self._count_contradictions(batch, earlier, new["feedback"].values())
        for name, rows in new.items():
            self._insert(name, list(rows.values()))
            self.summary.new[name] += len(rows)
        self._settle(new["feedback"].values())

    def _insert_if_all_new(self, batch: Batch) -> bool:
        """Inserts a regular batch of which the store has nothing, without looking first; otherwise it does nothing.

        SQLite only, which then needs no statement's journal either: a row that is there is passed over.
        """
        before = {name: self._open.exec_driver_sql(f"SELECT max(number) FROM {name}").scalar() or 0 for name in TABLES}
        for name, rows in batch.rows.items():
            if self._insert(name, list(rows.values()), "INSERT OR IGNORE") < len(rows):
                for table, last in before.items():
                    self._open.exec_driver_sql(f"DELETE FROM {table} WHERE number > ?", (last,))
                return False
        for name, rows in batch.rows.items():
            self.summary.new[name] += len(rows)
        self._count_contradictions(batch, (), batch.rows["feedback"].values())  # its answers are new, so are its pairs
        self._settle(batch.rows["feedback"].values())
        return True

    def _count_regular(self, batch: Batch, new: dict[str, dict[str, TableRow]]) -> None:
        """Counts a batch whose rows are all taken; one brings something if it has feedback, which is new, or if what
        it has besides is."""
        self.summary.rows += len(batch.items)
        counted: dict[str, set[str]] = {"prompts": set(), "completions": set()}
        for item in batch.items:
            assert not isinstance(item, Refused)
            brought = False
            for name, row in reversed(item.rows):
                if name == "feedback":
                    brought = True
                    break
                if row[0] in new[name] and row[0] not in counted[name]:
                    counted[name].add(row[0])
                    brought = True
            self._count(brought)
            if item.notes or item.redacted:
                self._note(item)

    def _row_by_row(self, batch: Batch, there: dict[str, dict[str, Any]]) -> dict[str, dict[str, TableRow]]:
        """What is new in a batch of which some rows may have to be rejected."""
        new: dict[str, dict[str, TableRow]] = {name: {} for name in TABLES}
        for item in batch.items:
            self.summary.rows += 1
            if isinstance(item, Refused):
                self._reject(item)
                continue
            reason = self._problem(item, there, new)
            if reason:
                self._reject(_refused(item, reason))
                continue
            brought = False
            for name, row in item.rows:
                id = row[0]
                if id not in there[name] and id not in new[name]:
                    new[name][id] = row
                    brought = True
            if item.other is not None:
                self._others.append((item, brought))
            else:
                self._count(brought)
            self._note(item)
        return new

    # -- one row -----------------------------------------------------------------------------------------------------

    def _problem(
        self, prepared: Prepared, there: dict[str, dict[str, Any]], new: dict[str, dict[str, TableRow]]
    ) -> str:
        """Why a row cannot be taken; empty when it can."""
        for name, row in prepared.rows:
            id = row[0]
            earlier = new[name].get(id)
            if earlier is not None and earlier != row and not _same(name, earlier, row):
                return f"the id {id} stands for something else in an earlier row; ids must be unique"
            stored = there[name].get(id)
            if stored is not None and stored != row and not _same(name, stored, row):
                return f"the id {id} stands for something else in the store; ids must be unique"
            if self._gone and (name, id) in self._gone:
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

    def _look_up(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """What the store holds of the records in a batch, and of those that they name: id -> row, or None where only
        its being there matters."""
        named: dict[str, set[str]] = {name: set() for name in TABLES}
        if not batch.regular:
            for name, rows in batch.rows.items():
                for row in rows.values():
                    for table, id in named_in(name, row):
                        if id not in batch.rows[table]:
                            named[table].add(id)
        there: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
        for name, ids in named.items():
            there[name].update((row[0], None) for row in self._rows(name, ("id",), "id", ids))
        for name, own in batch.rows.items():
            there[name].update((row[0], tuple(row)) for row in self._rows(name, COLUMNS[name], "id", own))
        self._gone: set[tuple[str, str]] = set()
        for name, own in batch.rows.items() if self._deleted else ():
            gone = self._rows("tombstones", ("record_id", "kind"), "record_id", own)
            self._gone.update((name, row[0]) for row in gone if row[1] == _singular(name))
        return there

    def _rows(self, table: str, columns: Sequence[str], key: str, ids: Iterable[str]) -> Iterator[Any]:
        """Rows of a table whose `key` is among `ids`; one statement, however many these are."""
        wanted = list(ids)
        if not wanted:
            return
        select = f"SELECT {', '.join(columns)} FROM {table} WHERE {key} "
        if self.store.database.is_sqlite:
            values = (json.dumps(wanted),)
            yield from self._open.exec_driver_sql(select + "IN (SELECT value FROM json_each(?))", values)
        else:
            yield from self._open.exec_driver_sql(select + "= ANY(%s)", (wanted,))

    def _insert(self, name: str, rows: Sequence[TableRow], verb: str = "INSERT OR FAIL") -> int:
        """Inserts rows; gives how many. OR FAIL: an error ends the transaction, so none of them need be undone."""
        columns = COLUMNS[name]
        if not rows:
            return 0
        if not self.store.database.is_sqlite:
            cursor = self._open.connection.cursor()
            with cursor.copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return len(rows)
        one = "(" + ", ".join("?" * len(columns)) + ")"
        step = VALUES // len(columns)
        inserted = 0
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            statement = f"{verb} INTO {name} ({', '.join(columns)}) VALUES " + ", ".join([one] * len(part))
            inserted += self._open.exec_driver_sql(statement, tuple(chain.from_iterable(part))).rowcount
        return inserted

    def _count_contradictions(self, batch: Batch, before: Iterable[TableRow], feedback: Iterable[TableRow]) -> None:
        """Counts new preferences that say the opposite of what the same person said of the same pair `before`."""
        said: dict[tuple[str, str], set[str]] = {}
        for row in before:
            if row[1] == "preference":
                _hear(said, row)
        if said or batch.repeated_pairs:
            self.summary.contradictory += sum(_hear(said, row) for row in feedback if row[1] == "preference")

    def _settle(self, feedback: Iterable[TableRow]) -> None:
        """Brings the queue up to date, as `Store.add_feedback` does."""
        if not self._questions:
            return
        rows = list(feedback)
        pairs = {row[6] for row in rows if row[6] and row[1] in ("preference", "skip")}
        corrected = self._rows("feedback", ("pair",), "id", {row[10] for row in rows if row[10]})
        pairs.update(row[0] for row in corrected if row[0])
        if pairs:
            queue.settle(self._open, pairs)

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

    # -- how ---------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> sa.Connection:
        assert self._connection is not None, "write() belongs inside transaction()"
        return self._connection

    def _any(self, table: sa.Table) -> bool:
        return self._open.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None


def _same(name: str, old: TableRow, new: TableRow) -> bool:
    """Whether two rows of one id say the same, wherever they come from."""
    return old[1:] == new[1:] or _meaning(name, old) == _meaning(name, new)


def _meaning(name: str, row: TableRow) -> dict[str, Any]:
    """A row without what depends on the file that it was read from, nor a prompt's split, which may have moved."""
    values: dict[str, Any] = json.loads(row[-1])
    if name == "completions":
        return {"text": row[5], **values, "critique": None}  # whose critique it answers to may have been deleted since
    values.pop("source", None)
    if name == "prompts":
        values.pop("split", None)
    elif str(values["annotator"]["id"]).startswith("import:"):
        values["annotator"]["id"] = "import"
    return values


def _hear(said: dict[tuple[str, str], set[str]], row: TableRow) -> bool:
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
