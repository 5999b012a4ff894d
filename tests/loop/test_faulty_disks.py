"""Folders that can only be read, and disks that are full: a sentence that names them, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samples.faults import Ended, command, copied, reading_commands, results, run_words

from rlhf_loop import Loop, Recipe
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.damage import check_step
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.run_dir import RunDir

ReadOnly = Callable[[Path], None]
Disk = Callable[[int], Path]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """A run after round 0."""
    return made(tmp_path_factory.mktemp("begun") / "run", rounds=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    return made(tmp_path_factory.mktemp("whole") / "run", rounds=2)


def made(run: Path, rounds: int) -> Path:
    words = run_words(run)
    Loop(Recipe.load(words[1], words[2:-2]), run_dir=run).run(rounds)
    return run


@pytest.fixture
def read_only() -> Iterator[ReadOnly]:
    """Makes a folder, and all in it, one that can only be read: root by a mount, for it may write whatever the mode."""
    changed: list[Path] = []

    def change(folder: Path) -> None:
        if os.geteuid():
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode & ~0o222)
        elif not mounted("--bind", str(folder), str(folder)) or not mounted("-o", "remount,bind,ro", str(folder)):
            pytest.skip("root may write everywhere, and cannot mount a folder read-only here")
        changed.append(folder)

    yield change
    for folder in changed:
        if os.geteuid():
            for path in [folder, *folder.rglob("*")]:
                path.chmod(path.stat().st_mode | 0o200)
        else:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of so many KiB; called again, it gets as large."""
    folder = tmp_path / "disk"

    def make(kib: int) -> Path:
        begun = folder.is_mount()
        folder.mkdir(exist_ok=True)
        options = f"remount,size={kib}k" if begun else f"size={kib}k"
        if os.geteuid() or not mounted("-t", "tmpfs", "-o", options, "none", str(folder)):
            pytest.skip("a small disk needs root and the right to mount")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mounted(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


def is_sentence(ended: Ended, *parts: str) -> None:
    """It ended with code 2, and what it says is one sentence with these parts."""
    assert ended.code == 2, ended.out + ended.error
    assert "Traceback" not in ended.error
    for part in parts:
        assert part in ended.sentence, ended.error


def test_a_run_that_can_only_be_read_is_read_and_nothing_else(
    begun: Path, tmp_path: Path, read_only: ReadOnly, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(begun, tmp_path)
    sound = {name: command(capfd, *words).out for name, words in reading_commands(run, tmp_path / "before").items()
             if name in ("status", "policy list", "feedback stats", "feedback check")}  # fmt: skip
    read_only(run)
    words = reading_commands(run, tmp_path)
    for name, said in sound.items():
        ended = command(capfd, *words[name])
        assert (ended.code, ended.out) == (0, said), ended.error
    elsewhere = tmp_path / "page.html"
    assert command(capfd, "report", run, "--output", elsewhere).code == 0
    assert elsewhere.stat().st_size > 10_000
    is_sentence(command(capfd, *words["report"]), f"no permission to write {run / 'report.html'}", "--output")
    for writing in (
        run_words(run, "--rounds", "3"),
        words["watch"],
        words["serve"],
        ["policy", "promote", str(run), "base"],
        ["user", "delete", "ann", "--store", str(run)],
    ):
        is_sentence(command(capfd, *writing), str(run), "type the same command again")


def test_a_store_a_cache_and_places_to_write_that_can_only_be_read(
    begun: Path, tmp_path: Path, read_only: ReadOnly, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "readable"
    folder.mkdir()
    shutil.copy(begun / "feedback.db", folder)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}) + "\n")
    read_only(folder)
    is_sentence(command(capfd, "feedback", "import", pairs, "--store", folder / "feedback.db"), str(folder))
    is_sentence(command(capfd, "feedback", "import", pairs, "--store", folder / "new.db"), str(folder))
    assert command(capfd, "feedback", "stats", "--store", folder / "feedback.db").code == 0
    out = folder / "pairs.jsonl"
    export = ["feedback", "export", str(out), "--format", "trl", "--store", str(begun / "feedback.db")]
    is_sentence(command(capfd, *export), str(folder))
    is_sentence(command(capfd, "policy", "export", begun, folder / "policy"), str(folder), "choose a folder of yours")
    is_sentence(command(capfd, "init", folder / "mine"), str(folder))
    is_sentence(command(capfd, *run_words(folder / "run")), str(folder), "--run-dir")
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(folder / "cache"))
    is_sentence(command(capfd, *run_words(tmp_path / "run")), str(folder / "cache"), "RLHF_LOOP_CACHE")


def test_trackers_that_cannot_write_say_where(
    tmp_path: Path, read_only: ReadOnly, capfd: pytest.CaptureFixture[str], model_cache: Path
) -> None:
    run = tmp_path / "run"
    (run / "tracking").mkdir(parents=True)
    read_only(run / "tracking")
    is_sentence(command(capfd, *run_words(run, "report_to=[tensorboard]")), "tensorboard", str(run / "tracking"))


def fill_up(finished: Path, disk: Disk, sizes: list[int], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Makes the run on a disk that grows each time it was full; gives the files that did not fit."""
    run, full = disk(sizes[0]) / "run", []
    for kib in sizes:
        disk(kib)
        ended = command(capfd, *run_words(run))
        if ended.code == 0:
            break
        is_sentence(ended, str(run), "disk is full", "type the same command again")
        full.append(ended.sentence.split("while writing ")[1].split(". ")[0].removeprefix(f"{run}/"))
        for number in RunDir(run).rounds():
            for step in filter(Path.is_dir, RunDir(run).round(number).iterdir()):
                check_step(step)
                assert not [name for name in (read_manifest(step) or {"files": ()})["files"] if "partial" in name]
    assert results(run) == results(finished)
    return full


@pytest.mark.slow
def test_a_disk_that_was_full_now_and_then_leaves_the_same_run(
    finished: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(fill_up(finished, disk, [64, 1200, 1500, 2000, 2200, 100_000], capfd)) >= 3


@pytest.mark.slow
def test_a_disk_that_is_full_at_every_turn_leaves_the_same_run(
    finished: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    full = fill_up(finished, disk, [*range(1200, 5000, 52), 100_000], capfd)
    assert any("update" in file for file in full)
    assert any("feedback.db" in file for file in full)
    assert any("evaluate" in file for file in full)


def test_an_import_into_a_full_disk_takes_all_or_nothing_of_a_batch_and_goes_on(
    tmp_path: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ({"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No " * 40} for n in range(3000))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(capfd, "feedback", "import", pairs, "--store", tmp_path / "whole.db").code == 0
    store = disk(1500) / "feedback.db"
    ended = command(capfd, "feedback", "import", pairs, "--store", store)
    is_sentence(ended, f"the disk is full while writing {store}", "type the same command again")
    disk(100_000)
    assert command(capfd, "feedback", "import", pairs, "--store", store).code == 0
    with Store.open(store) as one, Store.open(tmp_path / "whole.db") as other:
        assert one.counts() == other.counts()
        assert {record.id for record in one.feedback()} == {record.id for record in other.feedback()}


def test_an_export_to_a_full_disk_leaves_nothing_that_looks_whole(
    begun: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    place = disk(300)
    ended = command(capfd, "policy", "export", begun, place / "policy")
    is_sentence(ended, "disk is full", str(place / "policy"))
    assert not (place / "policy").exists()
    disk(100_000)
    assert command(capfd, "policy", "export", begun, place / "policy").code == 0
