"""The files of a run: where they are, written whole or not at all, and known to be complete.

    RUN/recipe.yaml  RUN/places.json  RUN/lock  RUN/feedback.db  RUN/report.html
    RUN/round_003/snapshot/  reward/  score/  assemble/  update/  evaluate/  gate/  generate/  rescore/  ask/
    RUN/round_003/manifest.json      written last: the round is complete

Each step owns one folder. It fills `NAME.partial/` and renames it to `NAME/` when done, with a manifest that holds
a hash of its inputs and settings (`key`) and of each file it made. A folder without `.partial` is complete.
What this does not protect against: a disk that loses data after fsync, and people editing files in a run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_loop import private
from rlhf_loop.damage import damaged, hash_file, reading
from rlhf_loop.errors import UserError
from rlhf_loop.locks import InUse, check, locked
from rlhf_loop.places import relocated
from rlhf_loop.settings import read_yaml

STEPS = (
    "snapshot",
    "judge",
    "reward",
    "score",
    "assemble",
    "update",
    "evaluate",
    "evaluate_warm_start",
    "gate",
    "generate",
    "rescore",
    "ask",
)
"""The folders of a round, in order. `judge` and `evaluate_warm_start` are made in round 0 only."""


PROGRESS = "::progress::"
"""How a line of progress begins that a stage in a process of its own prints for its parent."""


class RunDir:
    """A run's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    def round(self, number: int) -> Path:
        """The folder of round `number`."""
        return self.path / f"round_{number:03d}"

    def step(self, number: int, step: str) -> Path:
        """The folder of a step of a round, complete or not yet there."""
        return self.round(number) / step

    def arguments(self, number: int, step: str) -> Path:
        """What the stage of a step was told: a file that stays when the step is done."""
        return self.round(number) / f"{step}.arguments.json"

    def rounds(self) -> list[int]:
        """Numbers of the rounds that were begun, in order."""
        return sorted(int(p.name[6:]) for p in self.path.glob("round_*") if p.name[6:].isdigit())

    def complete_rounds(self) -> list[int]:
        """Numbers of the rounds that are complete."""
        return [n for n in self.rounds() if (self.round(n) / "manifest.json").exists()]

    def changed_at(self) -> float:
        """When the last folder of a step took its place, or a round was completed: seconds since the epoch."""
        return max((self.round(number).stat().st_mtime for number in self.rounds()), default=0.0)

    def used_by(self) -> str | None:
        """Which process works on this run now, in words; None when none does. May take some seconds to find out."""
        try:
            with self.locked():
                return None
        except InUse as found:
            return found.owner

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from working on this run meanwhile; a lock that nobody alive holds is taken over."""
        with ExitStack() as stack:
            try:
                private.make_folder(self.path)
                stack.enter_context(locked(self.path / "lock", str(self.path)))
            except OSError as error:
                raise explain_os_error(error, self.path) from None
            yield


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


@dataclass(frozen=True, kw_only=True, slots=True)
class StageArguments:
    """What a stage is told: a JSON file, so that any process on any machine can be told the same."""

    stage: str  # a name in rlhf_loop.stages.STAGES
    title: str  # what trackers call the run
    round: int
    key: str  # of the output's manifest
    output: str  # the folder to make
    recipe: dict[str, Any]  # the whole recipe, paths absolute
    inputs: dict[str, str] = field(default_factory=dict)  # files and folders to read, by name
    values: dict[str, Any] = field(default_factory=dict)  # plain settings of this call

    @property
    def tracking(self) -> Path:
        """The run's folder for trackers that write files."""
        return Path(self.output).parent.parent / "tracking"

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> StageArguments:
        """The inverse of `write`."""
        values = read_json(path)
        if "run" in values:  # of an earlier version
            values["title"] = values.pop("run")
        try:
            return cls(**values)
        except TypeError:
            raise UserError(
                f"{path} holds no arguments of a stage of this version; type the `rlhf-loop run` command again, which "
                "writes them anew"
            ) from None


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


def _remove_unfinished(folder: Path) -> None:
    """Takes away what an interrupted attempt was writing when it died: such names are put in place by renaming."""
    for path in sorted(folder.rglob("*.partial")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
        manifest = _object(path)
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


def fingerprint(*parts: Any) -> str:
    """SHA-256 of `parts` as JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it into it; its owner alone may read it."""
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


def without_times(value: Any) -> Any:
    """`value` without its `...seconds` entries: the same work then leaves the same file (manifests hold the times)."""
    if not isinstance(value, dict):
        return value
    return {name: without_times(part) for name, part in value.items() if not name.endswith("seconds")}


def read_json(path: Path) -> dict[str, Any]:
    """The object that `write_json` wrote; a damaged file is a `UserError` naming it and what to delete."""
    with reading(path):
        return _object(path)


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError("it holds no JSON object")
    return value


def read_kept(run: Path) -> tuple[dict[str, Any], str]:
    """The recipe that a run keeps, as plain values and as text; a damaged one is a `UserError` with the remedy."""
    path = run / "recipe.yaml"
    with reading(path):
        text = path.read_text(encoding="utf-8")
        try:
            values = read_yaml(text, "it")
        except UserError as error:
            raise damaged(path, str(error).splitlines()[0]) from None
        blocks = [values[name] for name in ("policy", "update", "feedback")]
        if not all(isinstance(block, dict) for block in [*blocks, values["feedback"].get("annotator") or {}]):
            raise TypeError("it holds no recipe")
    return relocated(values, run.resolve()), text


def explain_os_error(error: OSError, path: Path) -> UserError:
    """A full disk or a missing permission, in words that say what to do."""
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
