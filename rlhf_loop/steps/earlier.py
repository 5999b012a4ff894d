"""What a round takes over from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.feedback.privacy.deletion_files import is_redacted
from rlhf_loop.files import read_json
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.run_dir import RunDir


def reward_of_same_pairs(
    run: RunDir, n: int, frozen: Path, specs: list[str], files: Sequence[str] = ("pairs.parquet",)
) -> int | None:
    """The last round before `n` that trained a reward model, if since then no pair came or went and nobody edited it.

    `frozen`: round `n`'s snapshot; `specs`: hashes of what describes the reward model now; `files`: of the snapshot,
    what it is trained on.
    """
    now = _hashes(frozen, files)
    for earlier in range(n - 1, 0, -1):
        before = run.step(earlier, "snapshot")
        if is_redacted(before) or _hashes(before, files) != now:
            return None
        made = read_manifest(run.step(earlier, "reward"))
        if made is not None:
            return earlier if made["settings"]["specs"] == specs else None
    return None


def steps_before(run: RunDir, n: int) -> int:
    """Optimizer steps of all updates before round `n`: those before the last one, and its own."""
    for earlier in range(n - 1, -1, -1):
        metrics = run.step(earlier, "update") / "metrics.json"
        if metrics.exists():
            made = read_manifest(run.step(earlier, "update"))
            assert made is not None  # the update is complete
            return int(made["settings"]["step_offset"]) + int(read_json(metrics)["steps"])
    return 0


def kept_features(run: RunDir, n: int, steps: Sequence[str], rounds: int = 32) -> dict[str, Path]:
    """These steps of the last `rounds` rounds before `n`, where they kept features of texts which this round scores
    again: stage inputs, `features_ROUND_STEP`."""
    found = {}
    for earlier in range(max(1, n - rounds), n):
        for step in steps:
            manifest = read_manifest(folder := run.step(earlier, step))
            if manifest is not None and "features.parquet" in manifest["files"]:
                found[f"features_{earlier:03d}_{step}"] = folder
    return found


def steps_of_rounds(run: RunDir, n: int, step: str, name: str) -> dict[str, Path]:
    """The folders of a step in the rounds before `n` that have it complete: stage inputs, `NAME_ROUND`."""
    folders = {f"{name}_{earlier:03d}": run.step(earlier, step) for earlier in range(n)}
    return {name: folder for name, folder in folders.items() if (folder / "manifest.json").exists()}


def _hashes(snapshot: Path, files: Sequence[str]) -> list[str | None] | None:
    """Those of some of its files; None where the snapshot is not complete."""
    manifest = read_manifest(snapshot)
    return None if manifest is None else [manifest["files"].get(name) for name in files]
