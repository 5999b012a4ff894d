"""What happened in a run, for people: one offline HTML file, and a short status."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.files import write_text
from rlhf_loop.report.status import status
from rlhf_loop.run_dir import RunDir

__all__ = ["status", "write_report"]


def write_report(run: RunDir, only_if_old: bool = False, output: Path | None = None) -> Path:
    """Writes `output` (default: `RUN/report.html`) from the files that are there, whatever the run has come to, and
    returns its path.

    The file needs no network and no scripts. `only_if_old`: not where it is newer than all of the rounds. Raises
    `UserError` when there is no run at `run.path` or one of its files is damaged.
    """
    path = output or run.path / "report.html"
    if only_if_old and path.exists() and path.stat().st_mtime > run.changed_at():
        return path
    # jinja2 and matplotlib take their time to import, and the command line must answer at once
    from rlhf_loop.report.page import render

    write_text(path, render(run))
    return path
