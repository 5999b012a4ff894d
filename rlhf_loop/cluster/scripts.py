"""The scripts of `recipes/cluster/`, with the resources and set-up of a profile at their head."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.cluster.slurm_profile import Profile
from rlhf_loop.errors import UserError
from rlhf_loop.files.shipped import source

_BODY = "set -euo pipefail\n"
"""With this line a shipped script begins to do something."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call of a shipped script."""

    words: Sequence[str]  # its arguments
    variables: Mapping[str, str]  # of its environment


def render(
    script: str, options: Sequence[str], profile: Profile, *, name: str, output: str, calls: Sequence[Call]
) -> str:
    """A shipped script (`slurm.sh`) with other options of sbatch and a set-up at its head.

    Several `calls` make an array of jobs. `output`: the file for what Slurm and the script say, in Slurm's patterns.
    """
    kept = [option for option in re.findall(r"^#SBATCH (\S+)$", _shipped(script), re.MULTILINE) if _HOW.match(option)]
    array = [f"--array=0-{len(calls) - 1}"] if len(calls) > 1 else []
    head = [f"--job-name={name}", f"--output={_quoted(output)}", f"--chdir={_quoted(str(Path.cwd()))}"]
    lines = [
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        *_exports(profile.env),
        *_exports({} if profile.container is None else {"RLHF_LOOP_CONTAINER": profile.container}),
        *profile.setup,
        *_chosen([[*_exports(call.variables), f"set -- {shlex.join(call.words)}"] for call in calls]),
    ]
    sbatch = "".join(f"#SBATCH {option}\n" for option in [*kept, *head, *array, *options])
    return f"#!/bin/bash\n{sbatch}{with_head(script, lines)}"


def with_head(script: str, lines: Sequence[str]) -> str:
    """What a shipped script does, after `lines`."""
    shipped = _shipped(script)
    return "\n".join(
        [f"# recipes/cluster/{script}, as rlhf-loop fills it in.", *lines, shipped[shipped.index(_BODY) :]]
    )


def _shipped(script: str) -> str:
    return (source() / "recipes" / "cluster" / script).read_text(encoding="utf-8")


_HOW = re.compile("--(no-)?requeue|--signal|--open-mode")
"""Options of a shipped script that belong to what it does."""


def _exports(variables: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _chosen(calls: Sequence[Sequence[str]]) -> list[str]:
    """Lines of bash for one call, or for the one whose number this job of an array has."""
    if len(calls) == 1:
        return list(calls[0])
    cases = [f"{number}) {'; '.join(lines)} ;;" for number, lines in enumerate(calls)]
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]


def _quoted(path: str) -> str:
    if re.search(r'["\\\n]', path):
        raise UserError(
            f"{path!r} cannot stand in an #SBATCH line; use folders without quotes, backslashes and line breaks"
        )
    return f'"{path}"' if re.search(r"[\s#']", path) else path  # else a comment would begin, or a quotation
