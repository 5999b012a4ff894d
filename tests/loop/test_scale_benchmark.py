"""`benchmarks/scale.py` on the smallest recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), *arguments, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return dict(json.loads(out.read_text()))


def test_what_is_no_computing_is_overhead_however_stages_are_started(tmp_path: Path) -> None:
    found = measured(tmp_path, "overhead", "--recipe", str(ROOT / "recipes" / "smoke.yaml"))
    assert set(found["overhead"]) == {"inline", "child"}
    for [run] in found["runs"].values():
        for of in ("run", "round 1"):
            spent = run[of]["cpu"]
            computing = sum(spent[kind] for kind in ("training", "sampling", "scoring", "evaluating"))
            assert 0 < computing < spent["seconds"]
            assert spent["overhead"] == pytest.approx(1 - computing / spent["seconds"], abs=0.1)  # of rounded seconds
        assert set(run["round 1"]["steps"]) == {"reward", "score", "update", "evaluate", "generate", "rescore"}
    inline, child = (found["runs"][name][0]["run"]["cpu"]["seconds"] for name in ("inline", "child"))
    assert inline < child  # which imports libraries for each stage


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "smoke.yaml")
    found = measured(tmp_path, "ranks", "--speed-only", "--repeats", "1", "--recipe", recipe, "rounds=1")["speeds"]
    assert set(found["steps"]) == {"update", "generate", "rescore", "evaluate"}
    for step in found["steps"].values():
        [one], [two] = step["measured"]["1"], step["measured"]["2"]
        assert step["speedup"] == pytest.approx(one["clock"] / two["clock"], abs=0.01)
        assert step["work"] == pytest.approx(two["cpu"] / one["cpu"], abs=0.01)


def test_what_is_for_gpus_runs_anywhere_with_a_tiny_shape(tmp_path: Path) -> None:
    found = measured(tmp_path, "gpu", "--shapes", "tiny", "--repeats", "1")
    assert found["machine"]["accelerator"] is None
    assert [row["part"] for row in found["shapes"]] == ["dpo", "reward", "ppo"]
    for row in found["shapes"]:
        assert not row["failed"]
        for [side] in row["each"].values():
            assert side["steps"] == 4
            assert side["share_of_peak"] > 0
        if row["part"] != "ppo":  # which TRL no longer has
            [stock], [ours] = row["each"]["stock"], row["each"]["ours"]
            assert row["ratio"] == pytest.approx(stock["seconds"] / ours["seconds"], abs=0.01)
