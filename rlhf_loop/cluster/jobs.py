"""Which jobs work on a run: small files in it, for who follows them, for `rlhf-loop status`, and for who comes next.

RUN/job.json                        what `rlhf-loop submit` submitted last
RUN/round_003/update.job.json       the stage that is made, as long as it is
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_loop.cluster import PLATFORMS
from rlhf_loop.files import read_object, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.files.step_folders import is_complete


class Away(Exception):
    """A platform does not answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """A job that was submitted."""

    platform: str  # a name in `rlhf_loop.cluster.PLATFORMS`
    id: str  # as the platform names it
    what: str  # "whole run", "steering", "round 3, update"
    logs: str  # where its attempts log, absolute, or the command that shows it
    name: str = ""  # where the platform may give an id again, what it calls this job
    key: str = ""  # of what a stage makes
    tries: int = 0  # that a stage made, one after the other, without getting further
    got: tuple[str, ...] = ()  # what was there of a stage when its last attempt ended

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """What a platform says of a job."""

    state: str | None  # in the platform's words; None: nobody can be asked here
    where: str = ""  # its nodes, or why it has none
    attempt: int = 0
    logs: str  # of this attempt


def read_record(path: Path) -> JobRecord | None:
    """The inverse of `write`; None where there is no file. Raises `UserError` for one that is damaged."""
    if not path.exists():
        return None
    with reading(path):
        values = read_object(path)
        record = JobRecord(**{**values, "got": tuple(values.get("got", ()))})
        if record.platform not in PLATFORMS:
            raise ValueError(f"it names no platform: {record.platform!r}")
    return record


def run_record(run: Path) -> Path:
    """The file of what was submitted for a run."""
    return run / "job.json"


def stage_record(arguments: Path) -> Path:
    """The file of the job that makes a stage, by that of its arguments."""
    return arguments.with_name(arguments.name.removesuffix(".arguments.json") + ".job.json")


def records(run: Path) -> list[JobRecord]:
    """All that are kept of a run: what was submitted, then its stage that is not made yet."""
    files = [path for path in sorted(run.glob("round_*/*.job.json")) if not _is_made(path)]
    found = [read_record(path) for path in (run_record(run), *files)]
    return [record for record in found if record is not None]


def _is_made(file: Path) -> bool:
    """Whether a stage is made by whose job a record was left, for nobody followed it when it ended."""
    record = read_record(file)
    return record is not None and is_complete(file.with_name(file.name.removesuffix(".job.json")), record.key)
