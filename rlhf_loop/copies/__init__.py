"""Copies of a run elsewhere: its complete rounds in a repository of the Hugging Face hub, a bucket, or any other place
that fsspec knows.

    URL/rlhf_loop_run.json      the index: what is there whole, with a hash of each file
    URL/recipe.yaml  URL/places.json  URL/promotions.json  URL/report.html  URL/feedback.db  URL/endpoints.db
    URL/round_003/...           as in the run, so a policy can be loaded from where it lies

A file stands in the index only while the place holds it whole, so a copy that was cut short goes on with the same
command. To one place one pushes at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.copies.contents import Contents, File, read_contents
from rlhf_loop.copies.index import INDEX, Entry, Index, read_index
from rlhf_loop.copies.places import Place, open_place
from rlhf_loop.copies.pushed import note_pushed, pushed_to
from rlhf_loop.errors import UserError, printable
from rlhf_loop.feedback.store.location import locate
from rlhf_loop.files import commit_folder, explain_os_error, private
from rlhf_loop.files.damage import damaged, hash_file
from rlhf_loop.files.locks import locked
from rlhf_loop.progress import Progress
from rlhf_loop.runs import Run, open_run

__all__ = ["Copied", "NothingThere", "fetch", "push", "pushed_to"]

_BATCH_FILES, _BATCH_BYTES = 50, 2**28  # how much is put between two writings of the index


class NothingThere(UserError):
    """A place that can be read holds no whole round of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What a push or a fetch did."""

    place: str
    rounds: list[int]  # that the copy holds
    files: int  # that were copied now; the others were there
    bytes: int  # of those
    store: str | None  # where the run's feedback is, when the copy does not hold it


def push(run_dir: str | Path, url: str, public: bool = False, progress: Progress | None = None) -> Copied:
    """Copies the complete rounds of a run to `url`, or what is new of them; the run may go on meanwhile.

    Each file is compared with the hash in its step's manifest. What the run no longer holds, such as what a deletion
    took away, is replaced or removed there. `public`: see `open_place`. Raises `UserError` for a place that holds
    another run, or another round of the same number, or files of something else; for one within the run; for a damaged
    file; while the run is being pushed already, or a copy of it to the same place; for whatever the place refuses.
    """
    run, place = open_run(Path(run_dir).resolve()), open_place(url, public)
    here = run.run_dir.path
    if place.folder is not None and place.folder.is_relative_to(here):
        raise UserError(f"{place.name} lies in the run {here} itself: name a place outside of it")
    with locked(here / "push.lock", f"the pushing of {here}"), tempfile.TemporaryDirectory() as scratch:
        contents = read_contents(run.run_dir, Path(scratch))
        with place.alone():
            if (there := _index_at(place)) is None:
                there = Index(name=run.run_dir.name)
                place.claim({name.split("/")[0] for name in contents.files}, _written(there))
            _check_same(contents, there, place)
            note_pushed(here, str(place.folder or place.name))
            new = {name: file for name, file in contents.files.items() if _is_new(there.files.get(name), file)}
            index = _without_old(place, there, contents, new, _store_elsewhere(run))
            total, done = sum(file.path.stat().st_size for file in new.values()), 0
            for batch in _batches(new):
                index = _with(index, contents, {name: _checked(file) for name, file in batch.items()})
                place.put({name: file.path for name, file in batch.items()}, _written(index))
                done += sum(index.files[name].bytes for name in batch)
                if progress:
                    progress(done, total, next(reversed(batch)))
    return Copied(place=place.name, rounds=sorted(index.rounds), files=len(new), bytes=done, store=index.store)


def fetch(url: str, run_dir: str | Path, progress: Progress | None = None) -> Copied:
    """Copies the run that lies at `url` into the folder `run_dir`, which is there when it is whole.

    Each file is compared with the hash in the index; one that was fetched before is not fetched again. Raises
    `UserError` for a folder that is there already, a file that is not as pushed, and a place that cannot be read;
    `NothingThere` for one that can and holds no run.
    """
    folder, place = Path(run_dir).resolve(), open_place(url)
    _refuse_there(folder)
    index = _index_at(place)
    if index is None or not index.rounds:
        raise NothingThere(
            f"{place.name} holds no whole round of a run: no {INDEX} there names one. Push one there first"
        )
    partial = folder.with_name(folder.name + ".partial")
    try:
        private.make_folder(partial)
        with locked(folder.with_name(folder.name + ".lock"), f"the fetching of {folder}"):
            _refuse_there(folder)  # by another fetch that has just ended
            wanted = {name: entry for name, entry in index.files.items() if _is_wanted(name, index)}
            _remove_others(partial, wanted)
            left = {name: entry for name, entry in wanted.items() if not _is_there(partial / name, entry)}
            total, done = sum(entry.bytes for entry in left.values()), 0
            _refuse_too_large(total, place, folder)
            for name, entry in left.items():
                _get(place, name, entry, partial / name)
                done += entry.bytes
                if progress:
                    progress(done, total, name)
            commit_folder(partial, folder)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return Copied(place=place.name, rounds=sorted(index.rounds), files=len(left), bytes=done, store=index.store)


def _refuse_there(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} is there already, and a fetch changes no run: name another folder")


def _refuse_too_large(size: int, place: Place, folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(
            f"{place.name} holds {size / 2**30:,.1f} GiB that are not here yet, and the disk of {folder} has "
            f"{free / 2**30:,.1f} GiB free: free some space, or name a folder on another disk"
        )


def _index_at(place: Place) -> Index | None:
    raw = place.read_index()
    return None if raw is None else read_index(raw, place.name)


def _check_same(contents: Contents, there: Index, place: Place) -> None:
    for number, key in there.rounds.items():
        if contents.rounds.get(number) != key:
            what = "which is not complete here" if number not in contents.rounds else "made from something else"
            raise UserError(
                f"{place.name} holds round {number} of a run called {printable(there.name)}, {what}: nothing was "
                "changed. Push to another place, or fetch that run and go on with it"
            )


def _is_new(there: Entry | None, file: File) -> bool:
    return there is None or there.sha256 != file.sha256


def _store_elsewhere(run: Run) -> str | None:
    """The store of a run that is not in its folder, as it may be shown."""
    if run.recipe.store is None:
        return None
    location = locate(run.store_url)
    return run.store_url if location.is_sqlite else location.name


def _without_old(place: Place, there: Index, contents: Contents, new: Mapping[str, File], store: str | None) -> Index:
    """The index of what is there and stays; what does not is taken out of it before it is touched."""
    gone = [name for name in there.files if name not in contents.files]
    kept = {name: entry for name, entry in there.files.items() if name not in new and name not in gone}
    index = there.model_copy(update={"files": kept, "store": store})
    index = index.model_copy(update={"rounds": _whole_rounds(index, contents)})
    if len(kept) < len(there.files):
        place.put({}, _written(index))
        place.remove(gone)
    return index


def _batches(files: Mapping[str, File]) -> Iterator[dict[str, File]]:
    batch: dict[str, File] = {}
    size = 0
    for name, file in files.items():
        size += file.path.stat().st_size
        batch[name] = file
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _checked(file: File) -> Entry:
    if hash_file(file.path) != file.sha256:
        raise damaged(file.path, "it is not what the step wrote")
    return Entry(sha256=file.sha256, bytes=file.path.stat().st_size)


def _with(index: Index, contents: Contents, files: Mapping[str, Entry]) -> Index:
    index = index.model_copy(update={"files": {**index.files, **files}})
    return index.model_copy(update={"rounds": _whole_rounds(index, contents)})


def _whole_rounds(index: Index, contents: Contents) -> dict[int, str]:
    return {n: key for n, key in contents.rounds.items() if contents.of_round[n].keys() <= index.files.keys()}


def _written(index: Index) -> bytes:
    return (index.model_dump_json(indent=1, exclude_none=True) + "\n").encode()


def _is_wanted(name: str, index: Index) -> bool:
    """Whether a file is the run's own, or of a round that is there whole."""
    round, within, _ = name.partition("/")
    return not within or int(round.removeprefix("round_")) in index.rounds


def _remove_others(folder: Path, wanted: Mapping[str, Entry]) -> None:
    """Takes away what an earlier fetch left that the place no longer holds."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _is_there(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and hash_file(path) == entry.sha256


def _get(place: Place, name: str, entry: Entry, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coming = path.with_name(path.name + ".partial")
    private.make_file(coming)
    place.get(name, coming, entry.bytes)
    if not _is_there(coming, entry):
        raise UserError(
            f"{place.name}/{name} is not what was pushed; delete {INDEX} there, push the run again from where it is "
            "whole, then type the same command again"
        )
    coming.replace(path)
