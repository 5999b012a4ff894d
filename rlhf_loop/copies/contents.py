"""What a run holds that a copy of it needs: the files of its complete rounds, by the hashes in their manifests, and its
own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop import private
from rlhf_loop.copies.index import TOP
from rlhf_loop.damage import hash_file, reading
from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.run_dir import STEPS, RunDir
from rlhf_loop.step_folders import read_manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file to copy."""

    path: Path
    sha256: str  # by the manifest of its step; else of what it holds now


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The files by their path within the run."""

    rounds: dict[int, str]  # the complete ones, with a hash of what their steps were made from
    of_round: dict[int, dict[str, File]]
    top: dict[str, File]

    @property
    def files(self) -> dict[str, File]:
        """All of them, each round after the one before."""
        found: dict[str, File] = {}
        for number in sorted(self.of_round):
            found |= self.of_round[number]
        return found | self.top


def read_contents(run: RunDir, scratch: Path) -> Contents:
    """What `run` holds now; copies of its databases, whole whoever writes to them, are made in `scratch`.

    Raises `UserError` for a run without a complete round.
    """
    rounds, of_round = {}, {}
    for number in run.complete_rounds():
        rounds[number], of_round[number] = _round(run, number)
    if not rounds:
        raise UserError(f"no round of {run.path} is complete yet; a copy holds complete rounds")
    top = {}
    for name in TOP:
        if (path := run.path / name).exists():
            path = _database(path, scratch) if path.suffix == ".db" else path
            top[name] = _as_it_is(path)
    return Contents(rounds=rounds, of_round=of_round, top=top)


def round_key(manifests: dict[str, dict[str, Any]]) -> str:
    """What the steps of a round were made from, in one hash: equal of the same round in two copies of a run."""
    return fingerprint({step: manifest["key"] for step, manifest in sorted(manifests.items())})


def _round(run: RunDir, number: int) -> tuple[str, dict[str, File]]:
    folder = run.round(number)
    files, manifests = {}, {}
    for step in STEPS:
        if (manifest := read_manifest(run.step(number, step))) is None:
            continue
        manifests[step] = manifest
        now = manifest.get("redacted", {}).get("files", {})  # what a deletion changed
        for name, made in manifest["files"].items():
            files[f"{step}/{name}"] = File(path=folder / step / name, sha256=now.get(name, made))
        files[f"{step}/manifest.json"] = _as_it_is(folder / step / "manifest.json")
        if (arguments := run.arguments(number, step)).exists():
            files[arguments.name] = _as_it_is(arguments)
    files["manifest.json"] = _as_it_is(folder / "manifest.json")  # last: with it the round is complete
    return round_key(manifests), {f"{folder.name}/{name}": file for name, file in files.items()}


def _as_it_is(path: Path) -> File:
    return File(path=path, sha256=hash_file(path))


def _database(path: Path, scratch: Path) -> Path:
    copy = scratch / path.name
    private.make_file(copy)
    with reading(path), closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        try:
            source.backup(target)
        except sqlite3.Error as error:
            raise ValueError(str(error)) from error
    return copy
