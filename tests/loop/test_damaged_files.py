"""A damaged file of a run is named with what makes it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples.feedback import preference

from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json, write_json, write_text
from rlhf_loop.files.damage import remedy
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Preference
from rlhf_loop.report import write_report
from rlhf_loop.report.status import status
from rlhf_loop.run_dir import RunDir


@pytest.mark.parametrize("how", ["empty", "cut", "garbled"])
def test_a_damaged_file_is_named_with_its_step_alone(tmp_path: Path, how: str) -> None:
    step = tmp_path / "round_001" / "snapshot"
    step.mkdir(parents=True)
    write_records(step / "feedback.parquet", [preference("f")])
    write_json(step / "manifest.json", {"key": "k", "files": {}, "seconds": 1.0})
    for name, read in (("feedback.parquet", lambda p: read_records(p, Preference)), ("manifest.json", read_json)):
        file = step / name
        read(file)
        held = file.read_bytes()
        file.write_bytes({"empty": b"", "cut": held[: len(held) // 2], "garbled": b"\xff\x00{" + held[7:-9]}[how])
        with pytest.raises(UserError, match=rf"{name} is damaged") as caught:
            read(file)
        assert f"delete {step} and {tmp_path / 'round_001' / 'manifest.json'} and type the same" in str(caught.value)
    write_json(step / "manifest.json", {"key": "k"})
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_manifest(step)


def test_a_file_at_the_top_of_a_run_is_in_no_round(tmp_path: Path) -> None:
    run = tmp_path / "round_001" / "runs" / "mine"
    write_text(run / "recipe.yaml", "name: x")
    for name in ("recipe.yaml", "places.json"):
        assert remedy(run / name) == "put it back from a copy, or make it again"
    assert remedy(run / "round_002" / "ask" / "summary.json").startswith(f"delete {run / 'round_002' / 'ask'} and")


@pytest.mark.parametrize("text", ["- a", "5", "policy: 3", "update: [1]", "feedback: x", "feedback: {annotator: [1]}"])
def test_a_kept_recipe_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    write_text(tmp_path / "recipe.yaml", text)
    for look in (status, write_report):
        with pytest.raises(UserError, match=r"recipe\.yaml is damaged .*put it back from a copy"):
            look(RunDir(tmp_path))
