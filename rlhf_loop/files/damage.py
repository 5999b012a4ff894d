"""Files of a run that are not what was written: which one, and what makes it again.

The manifest of a complete step holds a hash of each of its files. So damage that still reads as something, such as
other numbers in a file of weights, is found too. What this does not protect against: a file and its manifest changed
together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files.paths import cache_folder

_ROUND = re.compile(rf"((?:.*{re.escape(os.sep)})?round_\d{{3,}}){re.escape(os.sep)}(.+)", re.DOTALL)
"""The innermost folder of a round, and the path within it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, whatever shows that `path` does not hold what was written there becomes a `UserError` with the
    remedy. A file of a complete step is compared with the step's manifest first."""
    place = _place(path)
    if place is not None:
        step, name = place
        made = _hashes(step).get(name)
        if made is not None:
            _compare(path, made)
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except PermissionError:
        raise _not_readable(path) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(path, _short(error)) from error


@contextmanager
def loading(source: str | Path, what: str = "a model") -> Iterator[None]:
    """Within it, whatever libraries raise for the files of the model in `source` becomes a `UserError`, which names
    the damaged file where the manifest of a step knows it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raise no other
        check_step(Path(source))
        told = f"{source} cannot be loaded as {what}: {str(error) or type(error).__name__}"
        if type(error).__name__ == "SafetensorError" or isinstance(error, (OSError, json.JSONDecodeError)):
            told += f". If its files were copied or a write was cut short, {remedy(Path(source) / 'config.json')}"
        raise UserError(told) from error


def check_step(folder: Path) -> None:
    """Raises `UserError` naming the first file in the folder of a complete step, or in a folder within it, that is not
    what the step wrote. Of a folder elsewhere nothing is known."""
    place = _place(folder / "any")
    if place is None:
        return
    step, name = place
    inside = name.removesuffix("any")
    for name, made in _hashes(step).items():
        if name.startswith(inside):
            _compare(step / name, made)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, why: str) -> UserError:
    """The error that says so, with the remedy."""
    return UserError(f"{path} is damaged ({why}); {remedy(path)}")


def remedy(path: Path) -> str:
    """What to delete so that the next command makes `path` again, and nothing else."""
    again = "and type the same `rlhf-loop run` command again, which makes it again"
    inside = _in_round(path)
    if path.name == "watch.json":
        return "delete it: what was not told yet will not be told"
    if path.name == "job.json" and inside is None:
        return "delete it: only which job was submitted for the run is not known then"
    if path.name == "promotions.json" and inside is None:
        return "delete it: which policies were promoted is read from the store then"
    if (made := _of_cache(path)) is not None:
        return f"delete {made} and type the same command again, which makes it again"
    if inside is None:
        kept = path.name == "recipe.yaml" and any(path.parent.glob("round_*"))
        return f"delete this file {again}" if kept else "put it back from a copy, or make it again"
    round, parts = inside
    step = parts[0].removesuffix(".arguments.json")
    if len(parts) == 1 and step == parts[0]:
        return f"delete this file {again}"
    return f"delete {round / step} and {round / 'manifest.json'} {again}"


def _compare(path: Path, made: str) -> None:
    try:
        now = hash_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is gone; {remedy(path)}") from None
    except PermissionError:
        raise _not_readable(path) from None
    if now != made:
        raise damaged(path, "it is not what the step wrote" if path.stat().st_size else "it is empty")


def _place(path: Path) -> tuple[Path, str] | None:
    """The folder of the step that `path` lies in, and its name there; None for anything else."""
    inside = _in_round(path)
    if inside is None or len(inside[1]) < 2 or inside[1][1:] == ("manifest.json",):
        return None
    round, parts = inside
    return round / parts[0], "/".join(parts[1:])


def _in_round(path: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder of the round that `path` lies in, and the parts of its path there."""
    text = str(path)  # texts, since a report asks for tens of thousands of files
    found = _ROUND.match(text)
    if found is None or os.path.exists(os.path.join(os.path.dirname(text), "recipe.yaml")):
        return None  # at the top of a run, whatever is above it
    return Path(found[1]), tuple(found[2].split(os.sep))


def _of_cache(path: Path) -> Path | None:
    """The folder of a model that was made here (see `models/files.py`) that `path` lies in."""
    return next((folder for folder in path.parents if folder.parent == cache_folder()), None)


def _hashes(step: Path) -> dict[str, str]:
    """Of the files of a step, by name; of one that is not complete none. Those that a deletion changed are left out."""
    path = step / "manifest.json"
    try:
        found = path.stat()
    except OSError:
        return {}
    return _read_hashes(path, (found.st_mtime_ns, found.st_size, found.st_ino))


@lru_cache(maxsize=2**14)
def _read_hashes(path: Path, stamp: tuple[int, ...]) -> dict[str, str]:
    with reading(path):
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        redacted = manifest.get("redacted", {})
        changed = {*redacted.get("users", {}), *redacted.get("files", {})}
        return {name: made for name, made in manifest["files"].items() if name not in changed}


def _not_readable(path: Path) -> UserError:
    return UserError(f"no permission to read {path}; ask its owner, or make it yours with chown")


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
