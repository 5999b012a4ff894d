"""A damaged file of a run is named with what makes it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from feedback_samples import preference

from rlhf_loop.errors import UserError
from rlhf_loop.records import Preference, read_records, write_records
from rlhf_loop.run_dir import read_json, read_manifest, write_json


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
