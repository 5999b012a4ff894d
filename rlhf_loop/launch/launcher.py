"""What each way to start a stage has."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rlhf_loop.cluster import platform
from rlhf_loop.cluster.jobs import read_record, stage_record
from rlhf_loop.errors import UserError
from rlhf_loop.progress import Progress


class Launcher(Protocol):
    """Starts a stage and waits for it."""

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Returns when the stage's output folder is complete; raises what went wrong."""

    def close(self) -> None:
        """Lets the other ranks go, if there are any."""


def refuse_while_a_job_makes(arguments_file: Path, follows: str = "") -> None:
    """Raises `UserError` when a job of a cluster makes this stage, which nobody follows now. `follows`: the platform
    whose jobs the caller follows itself."""
    file = stage_record(arguments_file)
    record = read_record(file)
    if record is None or record.platform == follows:
        return
    alive = platform(record.platform).alive(record)
    if alive is None:
        raise UserError(
            f"{record.platform} job {record.id} was submitted to make {record.what}, and nobody can be asked here "
            f"whether it has ended. If it has, delete {file}; else go on with `launch={record.platform}`"
        )
    if alive:
        raise UserError(
            f"{record.platform} job {record.id} makes {record.what}. Follow it with `launch={record.platform}`, or "
            "cancel it first"
        )
    file.unlink()
