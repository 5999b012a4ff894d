"""Slurm's own commands: sbatch, scontrol, squeue and scancel, and what they say. `sacct` is not asked: it needs an
accounting that not every cluster has."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.cluster import commands
from rlhf_loop.cluster.commands import answer, last_line
from rlhf_loop.cluster.jobs import Away
from rlhf_loop.errors import UserError

SECONDS = 60.0  # that a command of Slurm is waited for
GONE = "GONE"
"""The state of a job that Slurm no longer knows: it forgets one some minutes after its end."""

_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT", GONE,
}  # fmt: skip
_OF_THIS_JOB = re.compile("SLURM_(?!CONF$|CLUSTERS$)|RLHF_LOOP_LOCKS$|CUDA_VISIBLE_DEVICES$|MASTER_PORT$")
"""What the job that submits another one has in its environment and the other must not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What Slurm says of a job."""

    id: str
    state: str  # in Slurm's words: PENDING, RUNNING, NODE_FAIL, ...
    reason: str = ""  # why it waits or ended so: Priority, Resources, ...
    restarts: int = 0
    exit_code: int = 0
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in _ENDED


def require() -> None:
    """Raises `UserError` where there is no Slurm."""
    commands.require("sbatch", "to Slurm", "Type the command on a login node")


def command(script: Path) -> list[str]:
    """What submits a script."""
    return ["sbatch", "--parsable", str(script)]


def submit(command: Sequence[str]) -> str:
    """The id of what `sbatch --parsable ...` submits. Raises `UserError` for what Slurm refuses, `Away` where it may
    have been submitted or not."""
    code, said, errors = _call(command)
    if code == 0 and (id := said.strip().partition(";")[0]):
        return id
    raise UserError(f"Slurm refused the job: {_reason(errors) or said.strip()}. Command: {' '.join(command)}")


def look(id: str, name: str) -> Job:
    """A job as it is now, of this name (where it is "", of any): one of another name has its number since Slurm counts
    anew, and it is gone. Raises `Away`."""
    code, said, errors = _call(["scontrol", "--oneliner", "show", "job", id])
    if code != 0 or "JobState=" not in said:
        if code == 0 or "Invalid job id" in errors:
            return Job(id=id, state=GONE)
        raise Away(_reason(errors))
    values = dict(word.split("=", 1) for word in said.splitlines()[0].split() if "=" in word)
    if name and values.get("JobName", name) != name:
        return Job(id=id, state=GONE)
    nodes, reason = values.get("NodeList", ""), values.get("Reason", "")
    return Job(
        id=values.get("JobId", id),  # of a job of an array: its own
        state=values["JobState"],
        reason="" if reason == "None" else reason,
        restarts=int(values.get("Restarts", 0)),
        exit_code=int(values.get("ExitCode", "0:0").partition(":")[0]),
        nodes="" if nodes == "(null)" else nodes,
    )


def named(name: str) -> list[str]:
    """The ids of this user's jobs of a name that wait or run. Raises `Away`."""
    code, said, errors = _call(["squeue", "--noheader", f"--user={os.getuid()}", f"--name={name}", "--format=%A"])
    if code != 0:
        raise Away(_reason(errors))
    return said.split()


def hosts(nodes: str) -> list[str]:
    """The names in a list as Slurm writes it: `n[1-2]` -> n1, n2. Raises `UserError` for what is none."""
    code, said, errors = _call(["scontrol", "show", "hostnames", nodes])
    if code != 0 or not said.strip():
        raise UserError(f"scontrol names no nodes of `{nodes}`: {_reason(errors)}")
    return said.split()


def cancel(id: str) -> None:
    """Ends a job; one that has ended is left. Raises `Away`."""
    _call(["scancel", id])


def cancel_named(name: str) -> None:
    """Ends this user's jobs of a name. Raises `Away`."""
    _call(["scancel", f"--user={os.getuid()}", f"--name={name}"])


def _call(command: Sequence[str]) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not _OF_THIS_JOB.match(name)}
    code, said, errors = answer(command, SECONDS, environment=environment)
    if code != 0 and re.search(_AWAY, errors):
        raise Away(_reason(errors))
    return code, said, errors


_AWAY = "[Uu]nable to contact slurm controller|Socket timed out|Connection (refused|timed out)|temporarily unable"


def _reason(errors: str) -> str:
    """Slurm's last line without its head."""
    return re.sub(r"^\w+: (error|fatal): ", "", last_line(errors))
