"""Where copies of a run were pushed to: noted in the run, so that a deletion can say where else the texts are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.locks import locked

FILE = "pushed.json"
"""`{PLACE: seconds since the epoch}` in the run's folder."""


def note_pushed(run: Path, place: str) -> None:
    """Notes that a copy is, or may in part be, at `place`."""
    with locked(run / f"{FILE}.lock", str(run / FILE), wait=True):
        write_json(run / FILE, {**_read(run), place: time.time()})


def pushed_to(run: Path) -> list[str]:
    """The places of its copies, the first one first."""
    return sorted(found := _read(run), key=lambda place: found[place])


def _read(run: Path) -> dict[str, Any]:
    return read_json(run / FILE) if (run / FILE).exists() else {}
