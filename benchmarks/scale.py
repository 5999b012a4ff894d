"""What scale costs and gains: several processes, the loop's own overhead, trainings of models of real sizes.

    OMP_NUM_THREADS=1 python benchmarks/scale.py ranks --out benchmarks/results/scale_ranks.json
    OMP_NUM_THREADS=1 python benchmarks/scale.py overhead --out benchmarks/results/scale_overhead.json
    python benchmarks/scale.py gpu --shapes 0.5B 1.5B 7B --vllm --out benchmarks/results/scale_gpu.json

- `ranks`: what two processes train against what one trains, and how fast they are (`scale_ranks.py`).
- `overhead`: of a round of the quickstart, what is not computing (`scale_overhead.py`).
- `gpu`: DPO, a reward model and PPO against TRL's own trainers, and with `--vllm` the engines (`scale_gpu.py`). It has
  never run on a GPU; with `--shapes tiny` it runs anywhere.

What the death of a node costs is measured by `slurm.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe
from scale_gpu import PARTS, TASKS, gpu
from scale_overhead import overhead
from scale_ranks import differences, speeds

ROOT = Path(__file__).parents[1]
SMALLER = [
    "generation.prompts_per_round=16", "evaluation.max_prompts=16", "update.trainers.dpo.max_steps=6",
]  # fmt: skip
"""The quickstart cut down, for `ranks`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    of_ranks = parts.add_parser("ranks", help="two processes against one")
    of_ranks.add_argument("--speed-only", action="store_true", help="leave out what the two train")
    of_ranks.add_argument("--repeats", type=int, default=3)
    of_ranks.add_argument("changes", nargs="*", default=SMALLER, help="key.sub=value of the recipe")
    of_overhead = parts.add_parser("overhead", help="what a round costs beside its computing")
    of_overhead.add_argument("--launches", nargs="+", default=["inline", "child"], help="inline, child, child@COMMIT")
    of_overhead.add_argument("--rounds", type=int, default=1, help="update rounds; round 0 is made too")
    of_overhead.add_argument("--repeats", type=int, default=1)
    of_gpu = parts.add_parser("gpu", help="trainings of models of real sizes")
    of_gpu.add_argument("--shapes", nargs="+", choices=TASKS, default=["0.5B", "1.5B", "7B"])
    of_gpu.add_argument("--trainings", nargs="+", choices=PARTS, default=list(PARTS))
    of_gpu.add_argument("--repeats", type=int, default=3)
    of_gpu.add_argument("--vllm", action="store_true", help="vLLM against the loop's own engine too")
    for part in (of_ranks, of_overhead):
        part.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    for part in (of_ranks, of_overhead, of_gpu):
        part.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result: dict[str, Any]
        if arguments.part == "ranks":
            result = {} if arguments.speed_only else {"differences": differences()}
            result |= {"speeds": speeds(arguments.recipe, arguments.changes, arguments.repeats, folder)}
        elif arguments.part == "gpu":
            result = gpu(arguments.shapes, arguments.trainings, arguments.repeats, folder, arguments.vllm)
        else:
            result = overhead(arguments.recipe, arguments.launches, arguments.rounds, arguments.repeats, folder)
    asked = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    result = {"machine": describe(), "commit": commit(), "command": " ".join(["scale.py", *asked]), **result}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True
    )
    return told.stdout.strip() or "not a checkout"


if __name__ == "__main__":
    main()
