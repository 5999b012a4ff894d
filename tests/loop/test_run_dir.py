from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.files import explain_os_error, write_json, write_text
from rlhf_loop.files.step_folders import is_complete, outputs_hash, read_manifest, step_folder
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator, Completion, Critique, Feedback, Preference, Span, event_id, stable_id
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages.arguments import StageArguments


def make(folder: Path, key: str, text: str = "x") -> None:
    with step_folder(folder, key, {"a": 1}) as partial:
        (partial / "file.txt").write_text(text)


def interrupted(folder: Path, key: str, keep_partial: bool = False) -> bool:
    """An attempt that leaves a file and fails; whether it found what an earlier one left."""
    found = False
    with suppress(KeyError), step_folder(folder, key, {}, keep_partial=keep_partial) as partial:
        found = (partial / "checkpoint").exists()
        (partial / "checkpoint").touch()
        raise KeyError
    return found


def test_a_step_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    interrupted(folder, "k")
    assert not folder.exists()
    make(folder, "k")
    assert is_complete(folder, "k")
    assert not is_complete(folder, "another")
    assert not (tmp_path / "step.partial").exists()
    assert set(read_manifest(folder)["files"]) == {"file.txt"}


def test_a_step_made_again_replaces_the_old_one_only_when_it_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    make(folder, "old", "old")
    interrupted(folder, "new")
    assert (folder / "file.txt").read_text() == "old"
    make(folder, "new", "new")
    assert (folder / "file.txt").read_text() == "new"
    assert not (tmp_path / "step.old").exists()


def test_what_an_interrupted_attempt_left_is_kept_only_for_the_same_key(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    assert not interrupted(folder, "k", keep_partial=True)
    assert interrupted(folder, "k", keep_partial=True)
    assert not interrupted(folder, "other", keep_partial=True)
    assert not interrupted(folder, "other", keep_partial=False)


def test_the_hash_of_a_step_depends_on_its_files_and_not_on_when_they_were_made(tmp_path: Path) -> None:
    make(tmp_path / "a", "k1", "same")
    make(tmp_path / "b", "k2", "same")
    make(tmp_path / "c", "k1", "other")
    assert outputs_hash(tmp_path / "a") == outputs_hash(tmp_path / "b") != outputs_hash(tmp_path / "c")
    with pytest.raises(UserError, match="not complete"):
        outputs_hash(tmp_path / "none")


def test_a_full_disk_is_explained_and_leaves_what_was_there(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    target = tmp_path / "file.json"
    write_json(target, {"old": True})
    partial = tmp_path / f"file.json.{os.getpid()}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(UserError, match="disk is full"):
        write_text(target, "x" * 100_000)
    assert json.loads(target.read_text()) == {"old": True}


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match=str(blocked)):
        write_text(blocked / "x" / "y.txt", "text")
    assert "choose a folder of yours" in str(explain_os_error(PermissionError(13, "denied"), blocked))


def test_rounds_are_listed_in_order_and_complete_with_their_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in (10, 2, 0):
        run.round(number).mkdir()
    write_json(run.round(2) / "manifest.json", {})
    assert run.rounds() == [0, 2, 10]
    assert run.complete_rounds() == [2]


def test_stage_arguments_survive_their_file(tmp_path: Path) -> None:
    arguments = StageArguments(
        stage="score", title="r", round=1, key="k", output="o", recipe={"a": [1]}, inputs={"x": "y"}, values={"v": None}
    )
    arguments.write(tmp_path / "a.json")
    assert StageArguments.read(tmp_path / "a.json") == arguments


def test_records_survive_a_parquet_file_in_order(tmp_path: Path) -> None:
    who = Annotator(id="p1")
    records = [
        Preference(id="1", prompt_id="p", annotator=who, a_id="a", b_id="b", winner="tie", strength=0.5),
        Critique(id="2", prompt_id="p", annotator=who, completion_id="a", comment="ä\n", spans=(Span(start=0, end=3),)),
    ]
    write_records(tmp_path / "f.parquet", records)
    assert read_records(tmp_path / "f.parquet", Feedback) == records
    completions = [Completion(id=str(i), prompt_id="p", text="", policy="base", round=0) for i in (2, 1)]
    write_records(tmp_path / "c.parquet", completions)
    assert read_records(tmp_path / "c.parquet", Completion) == completions
    write_records(tmp_path / "none.parquet", [])
    assert read_records(tmp_path / "none.parquet", Completion) == []


def test_ids_of_content_are_stable_and_ids_of_events_sort_by_time() -> None:
    assert stable_id("completion", "run", 1) == stable_id("completion", "run", 1) != stable_id("completion", "run", 2)
    ids = [event_id() for _ in range(3)]
    assert len(set(ids)) == 3
    assert ids[0][:13] <= ids[2][:13]
    assert ids[0][14] == "7"
    assert ids[0][19] in "89ab"


def test_what_an_interrupted_attempt_was_writing_never_enters_the_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    with suppress(KeyError), step_folder(folder, "k", {}, keep_partial=True) as partial:
        (partial / "train_log.jsonl").write_text("{}\n")
        (partial / "metrics.json.123.partial").write_text('{"half')
        (partial / "reward" / "model.partial").mkdir(parents=True)
        (partial / "reward" / "model.partial" / "weights").touch()
        (partial / "key.txt.123.partial").touch()
        raise KeyError
    with step_folder(folder, "k", {}, keep_partial=True) as partial:
        assert (partial / "train_log.jsonl").exists()
        write_json(partial / "metrics.json", {})
    assert set(read_manifest(folder)["files"]) == {"train_log.jsonl", "metrics.json"}
    assert not list(folder.rglob("*.partial"))
