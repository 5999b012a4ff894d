"""What launchers have in common that make a stage in a job of a cluster: where it is, what it logs, how often it may be
tried."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rlhf_loop.cluster.jobs import Away, JobRecord, stage_record
from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.files.step_folders import is_complete
from rlhf_loop.stages.arguments import StageArguments

T = TypeVar("T")

POLL = 5.0  # seconds between two looks at a job
TRIES = 5  # attempts of a stage in a row that get no further
APPEARS = 60.0  # seconds that a shared file system may take to show what another machine made


class StageJob:
    """A stage that a job makes."""

    def __init__(self, file: Path):
        self.file, self.record = file.resolve(), stage_record(file)
        self.arguments = StageArguments.read(file)
        self.step = file.name.removesuffix(".arguments.json")
        self.output = Path(self.arguments.output)
        self.logs = self.arguments.run / "logs"
        self.label = f"round-{self.arguments.round:03d}-{self.step}"
        self.what = f"round {self.arguments.round}, {self.step}"
        self.content = fingerprint(self.arguments.output, self.arguments.key)[:8]

    def write_record(self, platform: str, id: str, *, name: str = "", after: JobRecord | None) -> JobRecord:
        """Writes down the job that makes it, and how often it was tried `after` the record of a former attempt. `name`:
        see `JobRecord`."""
        tries, got = (0, ()) if after is None else (after.tries, after.got)
        record = JobRecord(
            platform=platform,
            id=id,
            what=self.what,
            logs=str(self.logs),
            name=name,
            key=self.arguments.key,
            tries=tries,
            got=got,
        )
        record.write(self.record)
        return record

    def made(self, succeeded: bool) -> bool:
        """Whether its folder is there. It counts as there when the job `succeeded`, after a time for it to show: who
        asked for it tells what is missing then."""
        end = time.monotonic() + (APPEARS if succeeded else 0)
        while not is_complete(self.output, self.arguments.key):
            if time.monotonic() >= end:
                return succeeded
            time.sleep(POLL)
        return True

    def got(self) -> tuple[str, ...]:
        """Names of what an attempt left to go on from: checkpoints."""
        partial = self.output.with_name(self.output.name + ".partial")
        return tuple(sorted(str(path.relative_to(partial)) for path in partial.glob("**/checkpoint-*")))

    def counted(self, record: JobRecord, how: str, remedy: str) -> JobRecord:
        """The record after an attempt that ended early. Raises `UserError` after too many that got no further.

        `how` it ended, and a `remedy` beside saving more often, in words."""
        got = self.got()
        tries = record.tries + 1 if got == record.got else 0
        if tries >= TRIES:
            raise UserError(
                f"{self.step}: {TRIES} attempts one after the other ended early (the last: {how}), and none got "
                f"further than the one before. {remedy}, or let a training save more often (`save_steps`), and type "
                "the same command again"
            )
        return replace(record, tries=tries, got=got)


class Log:
    """The lines that an attempt's nodes write into a folder, as they come."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.read: dict[Path, int] = {}

    def lines(self) -> Iterator[str]:
        """Whole lines that were not given yet."""
        for path in sorted(self.folder.glob("*.log")):
            with suppress(OSError), path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
                self.read[path] = self.read.get(path, 0) + len(whole) + len(end)
                yield from whole.decode(errors="replace").splitlines()


def asked(platform: str, question: Callable[[], T]) -> T:
    """A platform's answer, however long it is away: what runs goes on meanwhile."""
    said = False
    while True:
        try:
            return question()
        except Away as error:
            if not said:
                said = True
                say(f"{platform} does not answer ({error}); asking again until it does")
            time.sleep(POLL)


def say(text: str) -> None:
    """To who looks on."""
    print(text, file=sys.stderr, flush=True)
