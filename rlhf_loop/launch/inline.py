"""Stages in this process: one import of torch and TRL for all of them."""

from __future__ import annotations

import gc
from pathlib import Path

from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.progress import Progress


class Inline:
    """Calls the stage's function."""

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Runs the stage here and now; its memory is given back before the next one."""
        refuse_while_a_job_makes(arguments_file)
        from rlhf_loop.models.memory import release_memory
        from rlhf_loop.stages import run_stage

        run_stage(arguments_file, progress)
        release_memory()
        gc.freeze()  # what is left is modules, half a million objects, which no later collection need look through

    def close(self) -> None:
        """Nothing waits; what was set aside is looked through again."""
        gc.unfreeze()
