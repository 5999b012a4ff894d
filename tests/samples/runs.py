"""What a run holds, to compare it with another."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.records import to_dict
from rlhf_loop.run_dir import STEPS, RunDir


def outputs(run: Path) -> dict[str, dict[str, str]]:
    """Hashes of every file that the steps made."""
    run_dir, found = RunDir(run), {}
    for number in run_dir.rounds():
        for step in STEPS:
            manifest = read_manifest(run_dir.step(number, step))
            if manifest:
                found[f"{number}/{step}"] = manifest["files"]
    return found


def store_content(run: Path) -> dict[str, list]:
    with Store.open(run / "feedback.db") as store:
        return {
            "completions": [to_dict(c) for c in store.completions()],
            "feedback": [to_dict(f) for f in store.feedback()],
            "scores": [to_dict(s) for s in store.scores()],
            "policies": [(a.id, a.parent, a.trained_on) for a in store.artifacts(kind="policy")],
            "promoted": [store.promoted_id()],
        }
