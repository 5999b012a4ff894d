"""Training checkpoints that a kill cannot break.

`transformers.Trainer` writes a checkpoint in place and resumes from the highest number, torn or not. Here each
checkpoint gets a mark once it is whole; unmarked ones are removed before resuming.
What this does not protect against: optimizer states are read with `torch.load` (weights only), so resume only in
folders of your own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

MARK = "COMPLETE"


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint when it is whole, then removes the ones before it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after the last file of a checkpoint was written."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / MARK).touch()
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def last_complete(folder: Path) -> str | None:
    """The newest whole checkpoint in `folder`; torn ones are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / MARK).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None
