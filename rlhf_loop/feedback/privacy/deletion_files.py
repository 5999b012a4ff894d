"""Taking deleted records out of the files of a run.

Rows go from every Parquet file, and what quotes them from the JSON files. A step's manifest keeps the hashes of its
files as they were made (`files`: what the steps after it stand on, so nothing is made again), and gains

    "state": "inputs redacted"
    "redacted": {"at": 1760000000.0, "files": {"pairs.parquet": "SHA-256 of the file as it is now"},
                 "users": {"pairs.parquet": ["the pseudonym of whose rows it held"]}}

The state alone marks the other steps of the round: they can no longer be made again from their inputs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from rlhf_loop.endpoints.answers import FILE, Answers
from rlhf_loop.feedback.privacy.deletion_rows import ROWS, Deletion, redact, redact_log
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.damage import hash_file, reading
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.run_dir import LOGS, RunDir

REDACTED = "inputs redacted"
"""The `state` of a manifest."""

_TRAINED_ON = ("training_data.parquet", "critiques.parquet")  # of the assemble step
BORROWED = ("borrowed_prompts.parquet", "borrowed_completions.parquet", "borrowed_feedback.parquet")
"""Of a snapshot: what the run borrowed (see `feedback/borrowed.py`). They are the last to lose anything: after an
interruption they tell what is still to go."""


def redact_run(run: RunDir, deletion: Deletion, key: str) -> dict[str, int]:
    """Takes them out of all files of a run that the caller holds the lock of; gives rows or entries taken out by file.

    What an interrupted step left (`.partial`) goes whole where its round held any of it: the step begins anew. `key`,
    the user's pseudonym, is noted beforehand in the manifests of the steps whose files change, so that it can be told
    from what data a model was made after an interruption too (see `trained_in`).
    """
    _refuse_damaged(run)
    changed: dict[str, int] = {}
    for file in run.path.glob("*.partial"):  # of a report that was not finished: it shows answers
        if file.name.startswith("report.") and file.is_file():
            file.unlink()
    for number, last in [*((n, False) for n in run.rounds()), *((n, True) for n in run.rounds())]:
        folder = run.round(number)
        for file in folder.rglob("*.partial"):
            if file.is_file():  # half a file, of something that was killed: nobody reads it
                file.unlink()
        files = [path for path in sorted(folder.rglob("*")) if (path.name in BORROWED) is last]
        found = {path: count for path in files if (count := redact(path, deletion, write=False))}
        if found:  # before the files, for these tell that it must go
            for left in [*folder.glob("*.partial"), *folder.glob("*.old")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        there = [path for path in found if path.exists()]
        _note(folder, there, key)
        for path in there:
            redact(path, deletion, write=True)
        changed.update({str(path.relative_to(run.path)): count for path, count in found.items()})
        _mark(folder)
    for path in sorted(path for path in (run.path / LOGS).rglob("*") if path.is_file()):
        if count := redact_log(path, deletion):
            changed[str(path.relative_to(run.path))] = count
    if (run.path / FILE).exists():
        with closing(Answers(run.path / FILE)) as answers:
            if gone := answers.forget(deletion.is_about):
                changed[FILE] = gone
    return changed


def _refuse_damaged(run: RunDir) -> None:
    """Before anything changes: what damaged files hold cannot be told, and their new hashes would be taken for those of
    the deletion."""
    for number in run.rounds():
        whole = run.round(number) / "manifest.json"
        if whole.exists():
            read_json(whole)
        for folder in run.round(number).iterdir():
            manifest = read_manifest(folder) if folder.is_dir() else None
            for name in manifest["files"] if manifest else ():
                if name.endswith(ROWS):
                    with reading(folder / name):
                        pass


def trained_in(run_dirs: Iterable[Path], key: str) -> list[tuple[int, Path]]:
    """The rounds, with their folders, whose training data held something of this user, deleted now or before."""
    rounds = [(number, run.round(number)) for run in map(RunDir, run_dirs) for number in run.rounds()]
    return [(number, folder) for number, folder in rounds if _trained_on(folder / "assemble", key)]


def _trained_on(assembled: Path, key: str) -> bool:
    users = (read_manifest(assembled) or {}).get("redacted", {}).get("users", {})
    return any(key in users.get(name, ()) for name in _TRAINED_ON)


def is_redacted(folder: Path) -> bool:
    """Whether a step's files, or those it was made from, are no longer what they were."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.get("state") == REDACTED


def _note(round_folder: Path, files: Sequence[Path], key: str) -> None:
    """Writes into the steps' manifests which of their files are about to lose something of this user."""
    for folder in dict.fromkeys(round_folder / file.relative_to(round_folder).parts[0] for file in files):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        redacted = {"at": time.time(), "files": {}, "users": {}, **manifest.get("redacted", {})}
        users = dict(redacted["users"])
        for name in (str(file.relative_to(folder)) for file in files if file.is_relative_to(folder)):
            users[name] = sorted({*users.get(name, ()), key})
        if users != redacted["users"]:
            manifest["redacted"] = {**redacted, "users": users}
            write_json(folder / "manifest.json", {**manifest, "state": REDACTED})


def _mark(round_folder: Path) -> None:
    """Brings the manifests up to date with the files; after an interruption too, which may have left some behind."""
    found = {folder: read_manifest(folder) for folder in sorted(round_folder.iterdir()) if folder.is_dir()}
    manifests = {folder: manifest for folder, manifest in found.items() if manifest is not None}
    any_changed = False
    for folder, manifest in manifests.items():
        files = {
            name: now
            for name, made in manifest["files"].items()
            if name.endswith(ROWS) and (now := hash_file(folder / name)) != made
        }
        any_changed |= bool(files)
        if files != manifest.get("redacted", {}).get("files", {}):
            manifest["redacted"] = {"users": {}, **manifest.get("redacted", {}), "at": time.time(), "files": files}
            write_json(folder / "manifest.json", {**manifest, "state": REDACTED})
    if not any_changed:
        return
    for folder, manifest in manifests.items():
        if manifest.get("state") != REDACTED:
            write_json(folder / "manifest.json", {**manifest, "state": REDACTED})
    whole = round_folder / "manifest.json"
    if whole.exists():
        write_json(whole, {**read_json(whole), "state": REDACTED})
