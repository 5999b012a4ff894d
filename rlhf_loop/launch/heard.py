"""What a stage in processes of its own says: progress for its parent, and last lines for when it fails."""

from __future__ import annotations

import json

from rlhf_loop.errors import UserError
from rlhf_loop.processes import LastLines
from rlhf_loop.progress import Progress
from rlhf_loop.run_dir import PROGRESS


class Heard:
    """Takes the lines of one attempt, one after the other."""

    def __init__(self, progress: Progress):
        self.progress, self.last = progress, LastLines()

    def __call__(self, line: str) -> None:
        """Hands progress on, and keeps what else there is."""
        if (counts := _counts(line)) is not None:
            self.progress(*counts)
        else:
            self.last.add(line)

    def fail(self, how: str) -> Exception:
        """The error of a stage that ended in this way: its own for the user, else `how` with its last lines."""
        if self.last.error is not None:
            return UserError(self.last.error)
        return RuntimeError(f"{how}. Its last lines:\n{self.last}")


def _counts(line: str) -> tuple[int, int, str] | None:
    """Of a line of progress; None for another, and for one that ranks which wrote at once have mixed."""
    if not line.startswith(PROGRESS):
        return None
    try:
        done, total, text = json.loads(line.removeprefix(PROGRESS))
        return int(done), int(total), str(text)
    except (ValueError, TypeError):
        return None
