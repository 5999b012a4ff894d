"""What the commands of a cluster (`sbatch`, `kubectl`, `sky`) answer, where they are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from rlhf_loop.cluster.jobs import Away
from rlhf_loop.errors import UserError


def require(program: str, submits: str, remedy: str, *, without: str = "cluster") -> None:
    """Raises `UserError` where a command is not on the PATH. `submits`: to what, or by what, it does; `remedy`: what to
    do; `without`: what users may not have."""
    if shutil.which(program) is None:
        raise UserError(
            f"there is no {program} on the PATH: this machine submits nothing {submits}. {remedy}; without a "
            f"{without}, `rlhf-loop run RECIPE` runs here. `rlhf-loop submit ... --dry-run` shows what would be "
            "submitted"
        )


def answer(
    command: Sequence[str], seconds: float, *, given: str = "", environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """The exit code of a command, its output and its errors. `given`: what it reads; `environment`: in place of this
    process's own. Raises `UserError` where there is none of its name, and `Away` where it takes longer than
    `seconds`."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", env=environment, timeout=seconds
        )
    except FileNotFoundError:
        raise UserError(f"there is no {command[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise Away(f"{command[0]} gave no answer in {seconds:.0f} seconds") from None
    return done.returncode, done.stdout, done.stderr


def last_line(said: str) -> str:
    """Of what a command said, where its reason stands; without the full stop."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
