"""The stages of a round: functions from files to files, each of which can run alone, on other machines, and again.

    python -m rlhf_loop.stages round_003/update.arguments.json

A stage never sees the store. All ranks of a job call it; `rlhf_loop.models.distributed` says which share is whose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.models import distributed
from rlhf_loop.progress import Progress, silent
from rlhf_loop.stages.arguments import StageArguments

STAGES = {
    "reward": "rlhf_loop.stages.reward:run",
    "score": "rlhf_loop.stages.score:run",
    "update": "rlhf_loop.stages.update:run",
    "evaluate": "rlhf_loop.stages.evaluate:run",
    "checks": "rlhf_loop.stages.checks:run",
    "generate": "rlhf_loop.stages.generate:run",
    "embed": "rlhf_loop.stages.embed:run",
}
"""Name -> function of (arguments, folder to fill, progress)."""


def run_stage(arguments_file: Path, progress: Progress | None = None) -> None:
    """Runs the stage that `arguments_file` describes, on this rank of however many there are."""
    arguments = StageArguments.read(arguments_file)
    run = resolve_name(STAGES[arguments.stage])
    import_module("rlhf_loop.models.memory").fit_threads()  # torch is here only now
    distributed.start()
    with _output(arguments) as folder:
        run(arguments, folder, progress or silent)


@contextmanager
def _output(arguments: StageArguments) -> Iterator[Path]:
    """The partial folder, made and committed by the main rank, the same for all."""
    output = Path(arguments.output)
    if distributed.is_main():
        with step_folder(output, arguments.key, arguments.values, keep_partial=True) as partial:
            distributed.barrier()
            yield partial
            distributed.barrier()
    else:
        distributed.barrier()
        yield output.with_name(output.name + ".partial")
        distributed.barrier()
    distributed.barrier()
