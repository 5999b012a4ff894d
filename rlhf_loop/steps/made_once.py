"""How a step of a round is made once: one that was made from the same inputs and settings stays as it is.

What a step depends on is said where it is made: the folders that it reads, the blocks of the recipe that it follows,
and plain values. Their hash is the step's key, which its manifest keeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.files.damage import check_step
from rlhf_loop.files.paths import content
from rlhf_loop.files.step_folders import is_complete, outputs_hash, step_folder
from rlhf_loop.kept_recipe import without_secrets
from rlhf_loop.progress import Progress, RunProgress
from rlhf_loop.recipe import Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages.arguments import StageArguments

Start = Callable[[Path, Progress], None]
"""Starts the stage that a file of arguments describes, and waits for it."""


class StepMaker:
    """Makes the steps of a run.

    `start` starts a stage; the steps that need no stage are functions that fill a folder. `before` is called before
    each of both.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        start: Start,
        progress: RunProgress,
        before: Callable[[], object] = lambda: None,
    ):
        self.run = run
        self.before = before
        self.start = start
        self.progress = progress
        self.values = without_secrets(recipe.model_dump(mode="json"))
        self._portable = without_place(self.values, run.path)
        # How fast a server is asked, and how much may be spent on it, changes nothing of what it answers.
        self._portable["endpoints"] = {name: one.identity for name, one in recipe.endpoints.items()}
        self._portable["generation"].pop("vllm", None)  # nor does how vLLM is started
        self._checked: set[Path] = set()  # folders whose files are what their steps wrote

    def blocks(self, *names: str) -> dict[str, Any]:
        """Blocks of the recipe, without the place of the run."""
        return {name: self._portable[name] for name in names}

    def step(
        self,
        n: int,
        step: str,
        inputs: Sequence[Path],
        settings: Mapping[str, Any],
        make: Callable[[Path, Progress], object],
    ) -> Path:
        """The folder of a step: as it is when it was made from the same inputs and settings, else filled by `make`,
        which may report how far it is."""
        self.before()
        folder = self.run.step(n, step)
        key = fingerprint(step, n, settings, [outputs_hash(path) for path in inputs])
        if is_complete(folder, key):
            self._check(folder)
            return folder
        self._check(*inputs)
        with self.progress.step(step) as report, step_folder(folder, key, settings) as partial:
            make(partial, report)
        self._checked.add(folder)
        return folder

    def stage(
        self,
        n: int,
        step: str,
        stage: str,
        *,
        follows: Sequence[str],
        inputs: Mapping[str, Path],
        read: Sequence[Path],
        values: Mapping[str, Any],
    ) -> Path:
        """The same for a step that a stage makes.

        `follows`: the blocks of the recipe that it depends on, beside the seed and the policy. `read`: the folders that
        its inputs lie in.
        """
        self.before()
        folder = self.run.step(n, step)
        settings, in_run = self.blocks("seed", "policy", *follows), without_place(values, self.run.path)
        key = fingerprint(step, n, settings, in_run, [outputs_hash(path) for path in read])
        if is_complete(folder, key):
            self._check(folder)
            return folder
        weights = [
            Path(values[name]) for name in ("policy", "start", "reference") if os.path.isabs(values.get(name, ""))
        ]
        self._check(*read, *weights)
        arguments = StageArguments(
            stage=stage,
            title=self.run.name,
            round=n,
            key=key,
            output=str(folder),
            recipe=self.values,
            inputs={name: str(path) for name, path in inputs.items()},
            values=dict(values),
        )
        file = self.run.arguments(n, step)
        arguments.write(file)
        with self.progress.step(step) as report:
            self.start(file, report)
        if not is_complete(folder, key):
            raise UserError(
                f"stage {step} ended without making {folder}. If it ran on another machine, the run folder must be on "
                "a file system that all machines share"
            )
        return folder

    def _check(self, *folders: Path) -> None:
        """Raises `UserError` for a file in folders of complete steps that is not what the step wrote; once a call."""
        for folder in folders:
            if folder not in self._checked:
                check_step(folder)
                self._checked.add(folder)


def without_place(value: Any, run: Path) -> Any:
    """Plain values with a path inside the run relative to it, a folder of a model by what it holds, and any other path
    by its name: a run that was moved, with its project or alone, keeps its keys."""
    if isinstance(value, Mapping):
        return {name: without_place(part, run) for name, part in value.items()}
    if isinstance(value, list):
        return [without_place(part, run) for part in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    path = Path(value)
    if path.is_relative_to(run):
        return str(Path("RUN") / path.relative_to(run))
    return (content(path) if os.path.isdir(path) else None) or path.name
