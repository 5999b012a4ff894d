"""SkyPilot's own command, `sky`, and what it says. It has the clouds and the API server of who runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from rlhf_loop.cluster import jobs
from rlhf_loop.errors import UserError

SECONDS = 120.0  # that a question is waited for

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Away(jobs.Away):
    """SkyPilot gives no answer."""


def require() -> None:
    """Raises `UserError` where there is no SkyPilot."""
    if shutil.which("sky") is None:
        raise UserError(
            "there is no sky on the PATH: this machine submits nothing by SkyPilot. Install it in an environment of "
            "its own (`pipx install 'skypilot[kubernetes]'`, or your cloud's name), and look with `sky check`; without "
            "a cloud, `rlhf-loop run RECIPE` runs here. `rlhf-loop submit ... --dry-run` shows what would be submitted"
        )


def launch(command: Sequence[str]) -> None:
    """Types a command that launches, which takes minutes; what it says is shown. Raises `UserError` where it fails."""
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise UserError(
            f"SkyPilot ended with exit code {code}; what it says stands above. Whether something runs: `sky jobs "
            f"queue`, `sky status`. Command: {' '.join(command)}"
        )


def managed_jobs() -> list[dict[str, Any]]:
    """The managed jobs of this user, the oldest first. Raises `Away`."""
    found: list[dict[str, Any]] = _asked("jobs", "queue", "--all", "--verbose")
    return sorted(found, key=lambda one: int(one["job_id"]))


def cluster(name: str) -> dict[str, Any] | None:
    """A cluster as its cloud knows it now; None: there is none. Raises `Away`."""
    return next((one for one in _asked("status", name, "--refresh") if one["name"] == name), None)


def cluster_jobs(name: str) -> list[dict[str, Any]]:
    """The jobs of a cluster that is up, the oldest first. Raises `Away`."""
    found: list[dict[str, Any]] = _asked("queue", name).get(name, [])
    return sorted(found, key=lambda one: int(one["job_id"]))


def _asked(*words: str) -> Any:
    """What stands as JSON among what a question is answered with."""
    command = ["sky", *words, "--output", "json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=SECONDS
        )
    except FileNotFoundError:
        raise UserError("there is no sky on the PATH") from None
    except subprocess.TimeoutExpired:
        raise Away(f"sky gave no answer in {SECONDS:.0f} seconds") from None
    if done.returncode != 0:
        raise Away(_reason(done.stderr) or _reason(done.stdout) or f"exit code {done.returncode}")
    for start in re.finditer(r"^[\[{]", done.stdout, re.MULTILINE):  # hints stand before it
        try:
            return json.JSONDecoder().raw_decode(done.stdout, start.start())[0]
        except json.JSONDecodeError:
            continue
    raise Away(f"no JSON came from {' '.join(command)}: {_reason(done.stdout)}")


def _reason(said: str) -> str:
    """Its last line without colours."""
    lines = [line.strip() for line in _COLOUR.sub("", said).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""
