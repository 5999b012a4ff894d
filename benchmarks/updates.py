"""The policy updates, measured: PPO against TRL 1.12's, the memory of a critic, all updates side by side.

    python benchmarks/updates.py --parts upstream memory compare --out benchmarks/results/updates.json

- `upstream`: PPO of TRL 1.12, the last release that had it, in a virtual environment of its own (made when `--venv` is
  not there yet), against ours: sampled tokens per second of `train()`, without imports and loading, and mean reward
  over training at equal samples. The two sides run in turn; `updates_upstream.py` says what is equal. On a GPU
  `--tasks 0.5B 1.5B` (they have never run); `scale.py gpu` compares what TRL has now.
- `memory`: where PPO's critic is placed, in copies of the model, predicted and measured (`updates_memory.py`).
- `compare`: gold reward against KL, all updates from one start at equal samples (`updates_compare.py`).
- `pairs`: the quickstart's DPO and KTO against TRL's own classes, in one process in turn (`updates_pairs.py`).

Every measurement is a process of its own. `--work` keeps models, the environment and what was measured, so that an
interrupted `compare` goes on. A part's figures replace its own in `--out`; a drawing of all goes beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import describe

HERE = Path(__file__).parent
PARTS = ("upstream", "memory", "compare", "pairs")
KLS = (0.5, 1.0, 2.0)
"""Nats a completion at which the updates are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["upstream", "memory", "compare"])
    parser.add_argument("--tasks", nargs="+", default=["tiny", "middle"], help="of `upstream`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of `upstream`")
    parser.add_argument("--algorithms", nargs="+", help="of `compare`; default: all")
    parser.add_argument("--venv", type=Path, help="an environment with trl 1.12; default: made in --work")
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep = nullcontext(arguments.work) if arguments.work else tempfile.TemporaryDirectory()
    with keep as folder:
        work = Path(folder).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for part in arguments.parts:
            if part == "upstream":
                python = python_of(arguments.venv or work / "venv")
                result = upstream(work, python, arguments.tasks, arguments.seeds)
            elif part == "memory":
                result = memory(work)
            elif part == "compare":
                result = compare(work, arguments.algorithms)
            else:
                result = measured(work, sys.executable, "updates_pairs.py", "--folder", work / "pairs")
            if arguments.out:
                keep_result(arguments.out, part, {"machine": describe(), **result})


def upstream(work: Path, python: str, tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Both sides on each task, in turn, for every seed."""
    result: dict[str, Any] = {"upstream_versions": versions_of(python), "tasks": {}}
    for task in tasks:
        folder = work / task
        if not (folder / "tokenizer.json").exists():
            child(sys.executable, "updates_upstream.py", "--task", task, "--folder", folder, "--make")
        rows = []
        for seed in seeds:
            row: dict[str, Any] = {"seed": seed}
            for side, interpreter in (("upstream", python), ("ours", sys.executable)):
                row[side] = measured(
                    work, interpreter, "updates_upstream.py", "--task", task, "--folder", folder, "--side", side,
                    "--seed", seed,
                )  # fmt: skip
            row["speed_ratio"] = round(row["ours"]["tokens_per_second"] / row["upstream"]["tokens_per_second"], 2)
            rows.append(row)
            print(
                f"{task}, seed {seed}: {row['upstream']['tokens_per_second']:.0f} -> "
                f"{row['ours']['tokens_per_second']:.0f} sampled tokens/s ({row['speed_ratio']}x), mean reward "
                f"{row['upstream']['mean_reward']:.3f} -> {row['ours']['mean_reward']:.3f}",
                flush=True,
            )
        result["tasks"][task] = rows
    return result


def memory(work: Path) -> dict[str, Any]:
    """Each placement in a fresh process."""
    folder, rows = work / "memory", {}
    if not (folder / "tokenizer.json").exists():
        child(sys.executable, "updates_memory.py", "--folder", folder, "--make")
    for placement in ("separate", "head", "adapter"):
        row = measured(work, sys.executable, "updates_memory.py", "--folder", folder, "--placement", placement)
        rows[placement] = row
        print(
            f"{placement}, copies of the model, predicted and measured: weights {row['weights']['predicted']} "
            f"{row['weights']['held']}, at the peak {row['peak']['predicted']} {row['peak']['measured']}",
            flush=True,
        )
    return {"placements": rows}


def compare(work: Path, names: Sequence[str] | None) -> dict[str, Any]:
    """The curves of the updates; those that are in `work` already are not made again."""
    from updates_compare import NAMES, curves

    folder = work / "compare"
    child(sys.executable, "updates_compare.py", "--folder", folder, "--prepare")
    results = {}
    for name in names or NAMES:
        out = folder / f"{name}.json"
        if not out.exists():
            child(sys.executable, "updates_compare.py", "--folder", folder, "--algorithm", name, "--out", out)
        results[name] = json.loads(out.read_text())
    drawn = curves(results, KLS)
    print(f"base: gold reward {shown(drawn['base']['gold'])}")
    for name, row in drawn["updates"].items():
        points = ", ".join(f"{shown(point['gold'])} at KL {point['kl']:.1f}" for point in row["points"])
        crossed = ", ".join(f"{shown(value) if value else '-'} at {kl}" for kl, value in row["gold_at_kl"].items())
        print(f"{name} ({row['samples']} samples, {row['seconds']:.0f} s): {points}; interpolated: {crossed}")
    return drawn


def python_of(venv: Path) -> str:
    """The Python of an environment with TRL 1.12 and otherwise the libraries that are installed here."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        same = ("torch", "transformers", "peft", "accelerate", "datasets")
        pinned = [f"{name}=={version(name).partition('+')[0]}" for name in same]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "trl==1.12.0", *pinned], check=True)
    return str(python)


def versions_of(python: str) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
    names = ("torch", "transformers", "trl")
    return dict(json.loads(subprocess.run([python, "-c", code % (names,)], check=True, capture_output=True).stdout))


def measured(work: Path, *command: object) -> dict[str, Any]:
    """What a child wrote to its `--out`."""
    out = work / "measured.json"
    child(*command, "--out", out)
    return dict(json.loads(out.read_text()))


def child(python: object, script: str, *arguments: object) -> None:
    """Runs a script of this folder; its output is shown only when it fails."""
    command = [str(python), str(HERE / script), *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode:
        raise SystemExit(f"{process.stdout[-4000:]}\nended with status {process.returncode}: {' '.join(command)}")


def shown(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def keep_result(out: Path, part: str, result: dict[str, Any]) -> None:
    """Puts a part's result beside those of other parts, and draws all of them."""
    from updates_drawing import draw

    out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(out.read_text()) if out.exists() else {}
    results[part] = result
    out.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
