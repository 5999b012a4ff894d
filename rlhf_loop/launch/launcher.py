"""What each way to start a stage has."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rlhf_loop.progress import Progress


class Launcher(Protocol):
    """Starts a stage and waits for it."""

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Returns when the stage's output folder is complete; raises what went wrong."""

    def close(self) -> None:
        """Lets the other ranks go, if there are any."""
