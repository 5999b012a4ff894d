"""`benchmarks/feedback_quality.py` on a small store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "feedback_quality.py"


@pytest.mark.parametrize("shape", ["votes", "pairs"])
def test_the_snapshot_of_a_store_is_measured_from_any_folder(tmp_path: Path, shape: str) -> None:
    command = [sys.executable, str(SCRIPT), "--parts", "snapshot", "--records", "200", "--shape", shape]
    subprocess.run(
        [*command, "--work", str(tmp_path), "--out", str(tmp_path / "out.json")], cwd=tmp_path, check=True
    )  # fmt: skip
    measured = json.loads((tmp_path / "out.json").read_text())
    assert set(measured[f"{shape}_200"]) == {"snapshot"}
    assert (tmp_path / "snapshot" / "feedback.parquet").exists()
