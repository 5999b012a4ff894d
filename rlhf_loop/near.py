"""What somebody may have meant who named what is not there: a path, a key, a kind."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path


def near(path: Path, fits: Callable[[Path], bool]) -> str:
    """In brackets, to stand behind the missing `path`: the one of nearly this name, what else is there of which `fits`
    holds, or the folder that is missing too."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    there = sorted(entry.name for entry in _visible(folder) if fits(entry))
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.75)
    if close:
        return f" (did you mean {folder / close[0]}?)"
    return f" (in {folder} there is: {', '.join(there[:5])}{', ...' if len(there) > 5 else ''})" if there else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """To stand behind an unknown `name`: the known one nearest to it, or the first of all there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; valid: {', '.join(sorted(known)[:12])}, ..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """As `nearest`, where one is near; nothing where none is."""
    hint = nearest(name, known)
    return hint if "did you mean" in hint else ""


def _visible(folder: Path) -> Iterable[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:  # the folder may not be listed
        return []
