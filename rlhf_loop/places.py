"""Where a path that somebody wrote leads: relative to the recipe that holds it, or to where its writer stood.

What names no file is left as it is: `hf:OWNER/NAME`, `pypi:...`, hub ids, URLs of servers.
"""

from __future__ import annotations

import re
from pathlib import Path

HUB = "hf:"
"""How a data set on the hub begins, as in `hf:OWNER/NAME`."""

_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?")


def absolute_path(path: str | Path, base: Path) -> Path:
    """A file or folder, from `base` on; a data set on the hub is none."""
    if str(path).startswith(HUB):
        return Path(path)
    return (base / Path(path).expanduser()).resolve()


def absolute_model(reference: str, base: Path) -> str:
    """A model's reference: a folder where it is written as one, or where there is one of this name."""
    written_as_path = reference.startswith((".", "/", "~"))
    if written_as_path or (base / reference).is_dir():
        return str(absolute_path(reference, base))
    return reference


def absolute_store(store: str, base: Path) -> str:
    """A store's URL or file; `:memory:` and servers stay as they are."""
    if store == ":memory:":
        return store
    if "://" not in store:
        return str(absolute_path(store, base))
    file = _SQLITE_FILE.fullmatch(store)
    if file is None or file[2] == ":memory:" or file[2].startswith("file:"):
        return store
    return f"{file[1]}{absolute_path(file[2], base)}{file[3] or ''}"
