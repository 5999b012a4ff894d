"""Runs as jobs of a cluster: what is submitted, and where; `rlhf_loop/launch/` starts stages there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

from rlhf_loop.errors import UserError

PLATFORMS = {
    "slurm": "rlhf_loop.cluster.slurm",
    "kubernetes": "rlhf_loop.cluster.kubernetes",
    "skypilot": "rlhf_loop.cluster.skypilot",
}
"""Name, a flag of `rlhf-loop submit` -> module with `read_profile(file, settings)`, `plan(submission, profile,
settings)`, `submit(plan)`, `told(plan, id)`, `state(record)` and `alive(record)`; `slurm.py` says what each gives."""


def platform(name: str) -> ModuleType:
    """The module of a platform."""
    module: ModuleType = resolve_name(PLATFORMS[name])
    return module


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedRun:
    """One run, as it is to be started."""

    folder: Path  # absolute
    words: Sequence[str]  # what follows `rlhf-loop run`: ["/home/me/recipes/smoke.yaml", "seed=1", "--run-dir", ...]
    accelerate_config: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a user wants to have run."""

    name: str  # of the run, or of the sweep
    runs: Sequence[SubmittedRun]  # several in a sweep
    stages: bool  # each stage a job of its own
    logs: Path  # a folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a platform would do: files to write, then commands."""

    submission: Submission
    files: dict[Path, str]
    commands: Sequence[Sequence[str]]


def words_there(run: SubmittedRun, folder: str) -> list[str]:
    """What follows `rlhf-loop run` where `folder` stands for the working folder. Raises `UserError` for a run or a
    recipe outside of that, and for a run that is this folder."""
    here = Path.cwd()
    if run.folder == here:
        raise UserError(
            f"the run's folder is {here} itself, which stands for your project: name one in it by --run-dir"
        )
    for path, what in ((run.folder, "the run's folder"), (Path(run.words[0]), "the recipe")):
        if not path.is_relative_to(here):
            raise UserError(
                f"{what}, {path}, is outside of {here}, and nodes see only what is within. Type the command in the "
                "folder of your project, and name what is in it"
            )
    return [re.sub(_path(here), lambda found: folder, word) for word in run.words]


def _path(folder: Path) -> str:
    """A pattern that finds a folder at the beginning of a path in a word, as in `store=sqlite:///FOLDER/x.db`, and not
    within another one (`/mnt/FOLDER`, `FOLDER-2`)."""
    return rf"""(?:(?<![^=,:\s\[\]{{}}'"])|(?<=:///)){re.escape(str(folder))}(?=$|[/?,\s\]}}'"])"""
