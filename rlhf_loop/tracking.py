"""The trackers of a recipe's `report_to`: one run of theirs for each training and one for each evaluation, all in the
project (MLflow: experiment) of the loop's run, unless the tracker's own environment variables say otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import is_main

_JOINED = ("wandb", "mlflow")
"""Trackers whose callbacks log into the run that is open; the callbacks of the others open one themselves."""

Log = Callable[[Mapping[str, float], int], None]
"""Called with values by name, and the step that they belong to."""


@contextmanager
def training_run(report_to: Sequence[str], project: str, name: str) -> Iterator[None]:
    """Within it the trackers' callbacks log to a run of this training, which is finished whatever happens.

    Left to themselves they would use a project called huggingface, and wandb's would go on with the run of the training
    before.
    """
    with ExitStack() as opened:
        if is_main():
            for tracker in report_to:
                if tracker in _JOINED:
                    opened.enter_context(_opened(tracker, project, name))
        yield


@contextmanager
def evaluation_run(report_to: Sequence[str], project: str, name: str, folder: Path) -> Iterator[Log]:
    """Gives what logs numbers to every tracker, on the main rank; `folder` is for those that write files."""
    with ExitStack() as opened:
        wanted = report_to if is_main() else ()
        trackers = [opened.enter_context(_opened(tracker, project, name, folder)) for tracker in wanted]

        def log(values: Mapping[str, float], step: int) -> None:
            for tracker in trackers:
                tracker.log(dict(values), step=step)

        yield log


@contextmanager
def _opened(kind: str, project: str, name: str, folder: Path | None = None) -> Iterator[Any]:
    """An Accelerate tracker with a run; one that the user's own code has open is used and stays open."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it which rank this is
    variable = _PROJECT_VARIABLES.get(kind)
    project = os.environ.get(variable, project) if variable else project
    users = _is_open(kind)
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": folder},
        "wandb": {"name": name},
        "mlflow": {"run_name": name, "nested_run": users},
        "trackio": {"name": name, "resume": "allow"},
    }
    tracker = LOGGER_TYPE_TO_CLASS[kind](project, **settings[kind])
    try:
        tracker.start()
    except Exception as error:
        # Each library has exceptions of its own for a missing key, an unreachable server, a folder it cannot use.
        raise UserError(
            f"report_to: {kind} did not start: {error}. Mend that, or leave it out of `report_to`"
        ) from error
    try:
        yield tracker
    finally:
        if not (users and kind == "wandb"):  # which has one run at a time, and gave us the user's
            tracker.finish()


_PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}


def _is_open(kind: str) -> bool:
    """Whether the user's own code has a run open."""
    if kind == "wandb":
        import wandb

        return wandb.run is not None
    if kind == "mlflow":
        import mlflow

        return mlflow.active_run() is not None
    return False
