"""What has been deleted in the projects that a run borrows feedback from leaves the run's files too.

The source is never written. Its tombstones say what was deleted, and the borrowed files of the run's snapshots what of
that the run has (see `feedback/borrowed.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import sqlalchemy as sa

from rlhf_loop.feedback.borrowed import COMPLETIONS, FEEDBACK, PROMPTS, Source, at_source
from rlhf_loop.feedback.privacy.deletion_files import redact_run
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import chunks
from rlhf_loop.feedback.store.queries import known_ids
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.trained_on import models_of
from rlhf_loop.files.damage import reading
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Feedback, Prompt
from rlhf_loop.run_dir import RunDir


class Forgetting:
    """Takes out of a run's files what has been deleted in its sources since it was borrowed."""

    def __init__(self, run: RunDir, sources: Sequence[Source], store: Store):
        """`store`: the run's own."""
        self.run = run
        self.sources = sources
        self.store = store
        self._seen: dict[str, int] = {}  # source -> the newest tombstone that was looked at

    def forget(self) -> list[str]:
        """Does so, with the lock of the run held; gives what was taken out, and which models had learned from it, in
        words. Raises `UserError` for a source that cannot be read: what it deleted is not known then."""
        said = []
        for source in self.sources:
            with Store.open_to_read(source.location.address) as there:
                with there.database.read() as connection:
                    newest = connection.scalar(sa.select(sa.func.max(tables.tombstones.c.number))) or 0
                    if self._seen.get(source.name) == newest:
                        continue
                    users = _deleted_by_user(connection, source.name, self._borrowed_ids()) if newest else {}
            for user, ids in users.items():
                said.append(self._forget_user(source.name, user, ids))
            self._seen[source.name] = newest
        return said

    def _borrowed_ids(self) -> dict[str, set[str]]:
        """The ids by kind that stand in the run's files because they were borrowed, and are not in its store."""
        with self.store.database.read() as connection:
            return {
                kind: ids - known_ids(connection, _TABLES[kind], ids)
                for kind, file in _FILES.items()
                if (ids := {id for path in _snapshots(self.run, file) for id in _ids(path)})
            }

    def _forget_user(self, source: str, user: str, ids: Mapping[str, set[str]]) -> str:
        deletion = _deletion(self.run, ids, at_source(user, source))
        with self.store.database.read() as connection:
            models = {id: None for chunk in chunks(deletion.feedback) for id in models_of(connection, chunk)}
        files = redact_run(self.run, deletion, user)
        report = self.run.path / "report.html"
        if files and report.exists():
            report.unlink()  # it shows texts; the loop writes it again
        learned = f"; {', '.join(models)} had learned from it, and stay as they are" if models else ""
        return f"deleted in {source}: {sum(files.values())} rows taken out of {len(files)} files of this run{learned}"


def as_borrowed(run: RunDir, deletion: Deletion) -> Deletion:
    """A deletion in some store, with the ids and names that the run has for the same where it borrowed it."""
    by_kind = {"prompt": deletion.prompts, "completion": deletion.completions, "feedback": deletion.feedback}
    more: dict[str, set[str]] = {kind: set() for kind in by_kind}
    for kind, wanted in by_kind.items():
        for path in _snapshots(run, _FILES[kind]):
            more[kind].update(id for id in _ids(path) if id in wanted or id.rpartition("@")[0] in wanted)
    named = {record.annotator.id for record in _records(run, "feedback")}
    return replace(
        deletion,
        prompts=deletion.prompts | more["prompt"],
        completions=deletion.completions | more["completion"],
        feedback=deletion.feedback | more["feedback"],
        annotators=deletion.annotators | {name for name in named if name.rpartition("@")[0] in deletion.annotators},
    )


_FILES = {"prompt": PROMPTS, "completion": COMPLETIONS, "feedback": FEEDBACK}
_TABLES = {"prompt": tables.prompts, "completion": tables.completions, "feedback": tables.feedback}
_RECORDS: dict[str, Any] = {"prompt": Prompt, "completion": Completion, "feedback": Feedback}


def _snapshots(run: RunDir, file: str) -> list[Path]:
    """This file of all snapshots that have it."""
    paths = [run.step(number, "snapshot") / file for number in run.rounds()]
    return [path for path in paths if path.exists()]


def _ids(path: Path) -> set[str]:
    with reading(path):
        if "id" not in pq.read_schema(path).names:  # a file without rows has no columns
            return set()
        return set(pq.read_table(path, columns=["id"]).column(0).to_pylist())


def _records(run: RunDir, kind: str) -> Iterator[Any]:
    for path in _snapshots(run, _FILES[kind]):
        yield from read_records(path, _RECORDS[kind])


def _deleted_by_user(
    connection: sa.Connection, source: str, ids: Mapping[str, set[str]]
) -> dict[str, dict[str, set[str]]]:
    """Those of the borrowed ids that the source has deleted, by the user with whom they went, and by kind."""
    stone = tables.tombstones.c
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for kind, borrowed in ids.items():
        here: dict[str, list[str]] = defaultdict(list)
        for id in borrowed:
            here[id.removesuffix(at_source("", source))].append(id)
        for chunk in chunks(here):
            query = sa.select(stone.user, stone.record_id).where(stone.kind == kind, stone.record_id.in_(chunk))
            for user, id in connection.execute(query):
                found[user][kind].update(here[id])
    return found


def _deletion(run: RunDir, ids: Mapping[str, set[str]], user: str) -> Deletion:
    """Of these ids of the run, with their texts as far as its snapshots still hold them."""
    gone = {kind: ids.get(kind, set()) for kind in _FILES}
    texts = {record.text for record in _records(run, "completion") if record.id in gone["completion"]}
    for prompt in _records(run, "prompt"):
        if prompt.id in gone["prompt"]:
            texts |= {message["content"] for message in prompt.messages if message["role"] != "system"}
    comments, left, leaving = set[str](), set[str](), set[str]()
    for record in _records(run, "feedback"):
        (leaving if record.id in gone["feedback"] else left).add(record.annotator.id)
        if record.id in gone["feedback"]:
            comments |= said_in(record)
    return Deletion(
        prompts=gone["prompt"],
        completions=gone["completion"],
        feedback=gone["feedback"],
        texts=(texts | comments) - {""},
        comments=comments,
        annotators={user, *(leaving - left)},
    )


def said_in(record: Feedback) -> set[str]:
    """The texts of a piece of feedback, as they are and without space around them."""
    spans = [span.comment for span in getattr(record, "spans", None) or ()]
    given = [text for text in (record.comment, getattr(record, "edited_completion", None), *spans) if text]
    return {*given, *(text.strip() for text in given)} - {""}
