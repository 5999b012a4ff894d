"""What a run holds that a copy of it needs: the files of its complete rounds, by the hashes in their manifests, and its
own."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop.copies.index import TOP
from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint, private, read_json, write_json, write_text
from rlhf_loop.files.damage import hash_file, reading
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.kept_recipe import read_kept, without_secrets
from rlhf_loop.run_dir import STEPS, RunDir
from rlhf_loop.settings import write_yaml


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
        rounds[number], of_round[number] = _round(run, number, scratch)
    if not rounds:
        raise UserError(f"no round of {run.path} is complete yet; a copy holds complete rounds")
    top = {name: _as_it_is(_copied(run, name, scratch, rounds)) for name in TOP if (run.path / name).exists()}
    return Contents(rounds=rounds, of_round=of_round, top=top)


def round_key(manifests: dict[str, dict[str, Any]]) -> str:
    """What the steps of a round were made from, in one hash: equal of the same round in two copies of a run."""
    return fingerprint({step: manifest["key"] for step, manifest in sorted(manifests.items())})


def _round(run: RunDir, number: int, scratch: Path) -> tuple[str, dict[str, File]]:
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
            files[arguments.name] = _as_it_is(_arguments(arguments, scratch))
    files["manifest.json"] = _as_it_is(folder / "manifest.json")  # last: with it the round is complete
    return round_key(manifests), {f"{folder.name}/{name}": file for name, file in files.items()}


def _as_it_is(path: Path) -> File:
    return File(path=path, sha256=hash_file(path))


def _arguments(path: Path, scratch: Path) -> Path:
    """The arguments of a stage without secrets, which earlier versions told it."""
    values = read_json(path)
    recipe = without_secrets(values.get("recipe", {}))
    if recipe == values.get("recipe", {}):
        return path
    copy = scratch / path.parent.name / path.name
    write_json(copy, {**values, "recipe": recipe})
    return copy


def _copied(run: RunDir, name: str, scratch: Path, rounds: Collection[int]) -> Path:
    """A file of the run in `scratch`, as it is now: the run, which may go on, writes it again. Of the recipe without
    secrets; of the promotions those of `rounds`, for of others the copy has no policy."""
    if name.endswith(".db"):
        return _database(run.path / name, scratch)
    copy = scratch / name
    if name == "recipe.yaml":
        values, text = read_kept(run.path)
        kept = without_secrets(values)
        write_text(copy, text if kept == values else write_yaml(kept))
    elif name == "promotions.json":
        made = re.compile(r"policy-(\d{3,})-")
        known = [one for one in run.promotions() or () if (of := made.match(one[0])) is None or int(of[1]) in rounds]
        RunDir(scratch).keep_promotions(known)
    else:
        shutil.copyfile(run.path / name, copy)
    return copy


def _database(path: Path, scratch: Path) -> Path:
    copy = scratch / path.name
    private.make_file(copy)
    with reading(path), closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        try:
            source.backup(target)
        except sqlite3.Error as error:
            raise ValueError(str(error)) from error
    return copy
