"""The end of a round: its manifest, whose presence means that the round is complete."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rlhf_loop.files import write_json
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.run_dir import RunDir


def complete(run: RunDir, n: int, started: float, figures: Mapping[str, Any]) -> None:
    """Writes the manifest of round `n`, which began at `started` (seconds since the epoch) and came to `figures`."""
    write_json(
        run.round(n) / "manifest.json",
        {
            "round": n,
            "seconds": round(time.time() - started, 3),
            "steps": _step_seconds(run, n),
            "figures": dict(figures),
            "peak_memory_bytes": _peak_memory(),
            "versions": {name: version(name) for name in ("rlhf-loop", "torch", "transformers", "trl", "peft")},
            "python": sys.version.split()[0],
        },
    )


def _step_seconds(run: RunDir, n: int) -> dict[str, float]:
    manifests = {folder.name: read_manifest(folder) for folder in run.round(n).iterdir() if folder.is_dir()}
    return {name: manifest["seconds"] for name, manifest in manifests.items() if manifest}


def _peak_memory() -> int:
    """Largest resident size of this process and of its children so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    )
