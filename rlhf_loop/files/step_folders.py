"""The folder that a step of a run makes: complete, with a manifest of what is in it and why, or not there.

A step fills `NAME.partial/` and renames it to `NAME/` when done. The manifest holds a hash of the step's inputs and
settings (`key`) and of each file it made. A folder without `.partial` is complete.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import (
    commit_folder,
    explain_os_error,
    failed_write,
    fingerprint,
    read_object,
    write_json,
    write_text,
)
from rlhf_loop.files.damage import hash_file, reading
from rlhf_loop.files.locks import check


@contextmanager
def step_folder(folder: Path, key: str, settings: Mapping[str, Any], keep_partial: bool = False) -> Iterator[Path]:
    """Gives `folder.partial` to write in; on success adds a manifest and renames it to `folder`.

    `keep_partial`: go on from what an interrupted attempt with the same `key` left (training checkpoints).
    A failed attempt stays as `.partial` and is cleared by the next one.
    """
    partial = folder.with_name(folder.name + ".partial")
    started = time.time()
    try:
        key_file = partial / "key.txt"
        check(folder)
        if partial.exists() and not (keep_partial and key_file.exists() and key_file.read_bytes() == key.encode()):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_text(key_file, key)
        yield partial
        check(folder)
        key_file.unlink()
        _remove_unfinished(partial)
        manifest = {
            "key": key,
            "settings": dict(settings),
            "files": {str(p.relative_to(partial)): hash_file(p) for p in sorted(partial.rglob("*")) if p.is_file()},
            "started": started,
            "seconds": round(time.time() - started, 3),
        }
        write_json(partial / "manifest.json", manifest)
        commit_folder(partial, folder)
    except UserError:
        raise
    except Exception as error:
        if (failed := failed_write(error, folder.parent)) is None:
            raise
        named = isinstance(failed.filename, str)
        raise explain_os_error(failed, Path(failed.filename) if named else folder) from error


def is_complete(folder: Path, key: str) -> bool:
    """Whether `folder` was made from the inputs and settings that `key` stands for."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest["key"] == key


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete folder, or None."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    with reading(path):
        manifest = read_object(path)
        for name in ("key", "files", "seconds"):
            manifest[name]
        return manifest


def outputs_hash(folder: Path) -> str:
    """A hash of what a complete folder holds: for the key of the step that reads it.

    Of the files' contents only, so a step that is made again with the same result changes nothing downstream.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is not complete; delete {folder.parent / 'manifest.json'} and type the same `rlhf-loop run` "
            "command again, which makes it again"
        )
    return fingerprint(manifest["files"])


def _remove_unfinished(folder: Path) -> None:
    """Takes away what an interrupted attempt was writing when it died: such names are put in place by renaming."""
    for path in sorted(folder.rglob("*.partial")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
