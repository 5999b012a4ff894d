"""Where a path that somebody wrote leads: relative to the recipe that holds it, or to where its writer stood; and where
it leads after a run was moved.

What names no file is left as it is: `hf:OWNER/NAME`, `pypi:...`, hub ids, URLs of servers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_loop.files.store_address import SQLITE_FILE, split_project

HUB = "hf:"
"""How a data set on the hub begins, as in `hf:OWNER/NAME`."""


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
        path, project = split_project(store)
        return f"{absolute_path(path, base)}{project}"
    file = SQLITE_FILE.fullmatch(store)
    if file is None or file[2] == ":memory:" or file[2].startswith("file:"):
        return store
    return f"{file[1]}{absolute_path(file[2], base)}{file[3] or ''}"


PLACES = "places.json"
"""In a run: `{places: [folders it has been in, the last one now], contents: {path: hash}}`."""

_WHOLE = 4 * 2**20  # bytes up to which a file is read whole for `content`
_END = 2**20  # bytes at each end of a larger one


def relocated(value: Any, inside: Path) -> Any:
    """`value` with each absolute path in it (SQLite stores too) as it is after the run that holds `inside` was moved
    together with what lay around it. A path with nothing at its new place stays as it is, as do runs that stayed."""
    run = next((folder for folder in (inside, *inside.parents) if (folder / PLACES).is_file()), None)
    if run is None:
        return value
    earlier = [place for place in reversed(read_places(run)["places"]) if place != str(run)]
    return _relocated(value, run, earlier) if earlier else value


def read_places(run: Path) -> dict[str, Any]:
    """What `PLACES` of a run holds; of a run without one, or with a damaged one, nothing."""
    try:
        found = json.loads((run / PLACES).read_text(encoding="utf-8"))
        return {"places": [str(place) for place in found["places"]], "contents": dict(found["contents"])}
    except (OSError, ValueError, KeyError, TypeError):  # it only helps to find what was moved
        return {"places": [], "contents": {}}


def paths_in(value: Any) -> Iterator[str]:
    """The absolute paths among plain values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from paths_in(part)
    elif isinstance(value, str) and os.path.isabs(value):
        yield value


def content(path: str | Path) -> str | None:
    """A hash of what a file, or a folder of a model, holds, wherever it lies; None where there is nothing.

    Of a folder the files at its top that are no text for readers; of a large file its size and both ends.
    """
    path = Path(path)
    if os.path.isfile(path):  # where a text that begins with a slash is no path, pathlib may raise
        return _hash_of(path)
    if not os.path.isdir(path):
        return None
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if (path / "reward_model.yaml").exists():
        files = [file for file in files if file.suffix in (".yaml", ".py")]
    listed = [[file.name, _hash_of(file)] for file in files if file.suffix != ".md"]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def cache_folder() -> Path:
    """Where models that are made here are kept."""
    chosen = os.environ.get("RLHF_LOOP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "rlhf-loop"


def _hash_of(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size}:".encode() + file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read(_END))
        return digest.hexdigest()


def _relocated(value: Any, run: Path, earlier: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _relocated(part, run, earlier) for name, part in value.items()}
    if isinstance(value, list):
        return [_relocated(part, run, earlier) for part in value]
    if not isinstance(value, str):
        return value
    store = SQLITE_FILE.fullmatch(value)
    path, project = (store[2], "") if store else split_project(value)
    if not os.path.isabs(path):
        return value
    for place in earlier:
        if os.path.commonpath([place, path]) == os.sep:  # it did not lie around the run
            continue
        there = os.path.normpath(run / os.path.relpath(path, place))
        if os.path.exists(there):
            return f"{store[1]}{there}{store[3] or ''}" if store else f"{there}{project}"
    return value
