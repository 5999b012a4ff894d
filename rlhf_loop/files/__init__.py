"""Files written whole or not at all, read or said to be damaged, and what the system says when it refuses, in words.

A file is written beside its place and renamed into it. What this does not protect against: a disk that loses data after
fsync.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import private
from rlhf_loop.files.damage import reading


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it into it; its owner alone may read it."""
    refuse_folder(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private.make_file(partial)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise explain_os_error(error, path) from error


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that `write_json` wrote; a damaged file is a `UserError` naming it and what to delete."""
    with reading(path):
        return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a caller that names the damaged file itself."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError("it holds no JSON object")
    return value


def without_times(value: Any) -> Any:
    """`value` without its `...seconds` entries: the same work then leaves the same file (manifests hold the times)."""
    if not isinstance(value, dict):
        return value
    return {name: without_times(part) for name, part in value.items() if not name.endswith("seconds")}


def fingerprint(*parts: Any) -> str:
    """SHA-256 of `parts` as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def commit_folder(partial: Path, folder: Path) -> None:
    """Puts a finished folder in its place; what stood there is removed only afterwards."""
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def refuse_folder(path: Path) -> None:
    """Raises `UserError` where a folder is named for a file that is to be written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder and no file. Name a file, such as one in it")


def explain_os_error(error: OSError, path: Path) -> UserError:
    """A full disk, a missing permission, a file in place of a folder, in words that say what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full while writing {path}. Nothing that was complete is lost: free some space (`rlhf-loop "
            "doctor` shows how much there is) and type the same command again, or use --run-dir on another disk"
        )
    if error.errno == errno.EFBIG:
        return UserError(
            f"{path} would grow larger than this process may write (`ulimit -f`). Nothing that was complete is lost: "
            "raise the limit and type the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        folder = next(place for place in (path, *path.parents) if place.is_dir())
        return UserError(
            f"no permission to write {path}: {folder} or what is in it can only be read by you. Make it writable "
            "and type the same command again, or choose a folder of yours (--run-dir; for a report --output)"
        )
    in_the_way = next((place for place in (path, *path.parents) if place.exists()), None)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and in_the_way is not None and not in_the_way.is_dir():
        below = "" if in_the_way == path else f", so there can be no {path}"
        return UserError(f"{in_the_way} is a file and no folder{below}. Name another folder, or move the file away")
    return UserError(f"{path}: {error}")


def failed_write(error: Exception, folder: Path) -> OSError | None:
    """The error of the system behind what libraries raise for a write in `folder` that failed; None for other errors.

    safetensors and tokenizers tell its number in their text; `torch.save` only that it could not write.
    """
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|unexpected pos", str(error)):
        full = shutil.disk_usage(folder).free < _NEARLY_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, "a file could not be written")
    return None


_NEARLY_FULL = 2**24  # bytes that are left where a larger piece did not fit


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
