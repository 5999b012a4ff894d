"""SkyPilot's own command, `sky`, and what it says. It has the clouds and the API server of who runs it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from rlhf_loop.cluster import commands
from rlhf_loop.cluster.commands import answer, last_line
from rlhf_loop.cluster.jobs import Away
from rlhf_loop.errors import UserError

SECONDS = 120.0  # that a question is waited for

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def require() -> None:
    """Raises `UserError` where there is no SkyPilot."""
    commands.require(
        "sky",
        "by SkyPilot",
        "Install it in an environment of its own (`pipx install 'skypilot[kubernetes]'`, or your cloud's name), and "
        "look with `sky check`",
        without="cloud",
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
    return _jobs(_asked("jobs", "queue", "--all", "--verbose"))


def cluster(name: str) -> dict[str, Any] | None:
    """A cluster as its cloud knows it now; None: there is none. Raises `Away`."""
    found = _rows(_asked("status", name, "--refresh"), "name", "status")
    return next((one for one in found if one["name"] == name), None)


def cluster_jobs(name: str) -> list[dict[str, Any]]:
    """The jobs of a cluster that is up, the oldest first. Raises `Away`."""
    found = _asked("queue", name)
    return _jobs(found.get(name, []) if isinstance(found, dict) else found)


def _jobs(found: Any) -> list[dict[str, Any]]:
    jobs = _rows(found, "job_id", "job_name", "status")
    try:
        return sorted(jobs, key=lambda one: int(one["job_id"]))
    except (TypeError, ValueError):
        raise Away("its jobs have ids that are no numbers") from None


def _rows(found: Any, *keys: str) -> list[dict[str, Any]]:
    """What was answered, where it is a list of things that have these keys."""
    if not isinstance(found, list) or not all(isinstance(one, dict) and one.keys() >= set(keys) for one in found):
        raise Away(f"its answer is no list of things with {', '.join(keys)}")
    return found


def _asked(*words: str) -> Any:
    """What stands as JSON among what a question is answered with."""
    command = ["sky", *words, "--output", "json"]
    code, said, errors = answer(command, SECONDS)
    if code != 0:
        raise Away(_reason(errors) or _reason(said) or f"exit code {code}")
    for start in re.finditer(r"^[\[{]", said, re.MULTILINE):  # hints stand before it
        try:
            return json.JSONDecoder().raw_decode(said, start.start())[0]
        except json.JSONDecodeError:
            continue
    raise Away(f"no JSON came from {' '.join(command)}: {_reason(said)}")


def _reason(said: str) -> str:
    """Its last line without colours."""
    return last_line(_COLOUR.sub("", said))
