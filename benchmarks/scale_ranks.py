"""Two processes against one: the part `ranks` of `scale.py`, which says how it is called.

    python -m torch.distributed.run --nproc_per_node 2 benchmarks/scale_ranks.py FILE...    (stages, on these ranks)

What they train is compared by `tests/models/test_sharded.py`. Their speed is that of the stages of one round, made
again from the same files by one and by two processes of one thread each, in turn: the same rows, and the same batch
over all ranks. Counted is what `scale_overhead.py` calls computing, without loading, on the slowest rank.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import run_measured
from scale_overhead import COMPUTES, FILE, measure_stages

ROOT = Path(__file__).parents[1]
SAME_WEIGHTS = "tests/models/test_sharded.py::test_two_ranks_train_what_one_process_trains"
AIM = 1e-6
STEPS = ("update", "generate", "rescore", "evaluate")
"""Those of a round that are made again."""


def differences() -> dict[str, Any]:
    """The largest difference of a trained weight between two processes and one, by update."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "measured.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", SAME_WEIGHTS, f"--junitxml={told}"]
        code = subprocess.run(command, cwd=ROOT).returncode
        kept = ElementTree.parse(told).iterfind(".//property[@name='difference']")
        found = {
            case.removesuffix("-sgd"): apart for _, case, _, apart in (json.loads(one.get("value", "")) for one in kept)
        }
    if not found:
        raise SystemExit(f"{SAME_WEIGHTS} measured nothing (status {code})")
    return {"aim": AIM, "reached": code == 0 and max(found.values()) < AIM, "largest": found}


def speeds(recipe: Path, changes: Sequence[str], repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds of each step with one and with two processes, in turn, and how often two are as fast as one."""
    run = folder / "run"
    command = [sys.executable, "-m", "rlhf_loop", "run", str(recipe), "--run-dir", str(run), "--rounds", "1"]
    run_measured([*command, "launch=inline", *changes])
    steps: dict[str, dict[int, list[dict[str, float]]]] = {step: {1: [], 2: []} for step in STEPS}
    for repeat in range(repeats):
        for ranks in (1, 2):
            for step, taken in on_ranks(run, ranks, folder / f"{repeat}-{ranks}").items():
                steps[step][ranks].append(taken)
                print(f"{step}, {ranks} processes: {taken}", flush=True)
    return {
        "recipe": recipe.name,
        "changes": list(changes),
        "rows": rows(run),
        "steps": {step: {**compared(found), "measured": found} for step, found in steps.items()},
    }


def rows(run: Path) -> dict[str, int]:
    """What each step works through: pairs, tokens, answers."""
    from rlhf_loop.record_files import read_records
    from rlhf_loop.records import Completion

    first = run / "round_001"
    written = read_records(first / "generate" / "completions.parquet", Completion)
    answers = read_records(first / "evaluate" / "answers.parquet", Completion)
    trained = json.loads((first / "update" / "metrics.json").read_text())
    return {
        "update, steps": trained["steps"],
        "generate, tokens": sum(completion.tokens for completion in written),
        "rescore, answers": len(written),
        "evaluate, answers": len(answers),
    }


def compared(found: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """`speedup`: by the clock, pair by pair. `work`: CPU seconds of both ranks over those of one process."""
    pairs = list(zip(found[1], found[2], strict=True))
    speedups = [round(one["clock"] / two["clock"], 2) for one, two in pairs]
    works = [round(two["cpu"] / one["cpu"], 2) for one, two in pairs]
    return {
        "speedup": statistics.median(speedups),
        "speedup_each": speedups,
        "work": statistics.median(works),
        "work_each": works,
    }


def on_ranks(run: Path, ranks: int, folder: Path) -> dict[str, dict[str, float]]:
    """Makes the steps of round 1 again; of each the seconds of the slowest rank and the CPU seconds of all."""
    files = [again(run / "round_001" / f"{step}.arguments.json", ranks, folder) for step in STEPS]
    told = folder / "told.jsonl"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", __file__]
    environment = {FILE: str(told), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    run_measured([*launch, *map(str, files)], environment)
    taken: dict[str, dict[str, float]] = {}
    for step in STEPS:
        lines = [line for line in map(json.loads, told.read_text().splitlines()) if line["step"] == step]
        assert len(lines) == ranks
        spent = [
            [sum(line["spent"].get(kind, (0, 0))[place] for kind in COMPUTES) for place in (0, 1)] for line in lines
        ]
        taken[step] = {"clock": round(max(one[0] for one in spent), 2), "cpu": round(sum(one[1] for one in spent), 2)}
    return taken


def again(file: Path, ranks: int, folder: Path) -> Path:
    """The arguments of a step that makes the same elsewhere, with the batch shared out among ranks."""
    arguments = json.loads(file.read_text())
    for trainer in [arguments["recipe"]["update"]["trainer"], *arguments["recipe"]["update"]["trainers"].values()]:
        if "per_device_train_batch_size" in trainer:
            trainer["per_device_train_batch_size"] //= ranks
    arguments["output"] = str(folder / "round_001" / Path(arguments["output"]).name)
    copy = folder / "round_001" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(json.dumps(arguments))
    return copy


def main(files: Sequence[str]) -> None:
    measure_stages()
    import rlhf_loop.stages
    from rlhf_loop.models import distributed

    for file in files:
        distributed.barrier()  # a rank that comes earlier does not wait within what is measured
        rlhf_loop.stages.run_stage(Path(file))
    if distributed.world_size() > 1:
        import torch.distributed

        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "started by torch.distributed.run"
    main(sys.argv[1:])
