"""What the death of a node, a time limit and preemption cost a run whose stages are Slurm jobs.

    python benchmarks/slurm.py --out benchmarks/results/slurm.json

Runs `pytest -m slow tests/loop/test_slurm_steered.py` (as root, with slurm-wlm and munge), on a Slurm of two nodes on
this machine, and keeps what its tests measure. `..._lost_steps`: steps of a training that were made again, of
checkpoints 5 steps apart. `..._seconds`: from the event until the next attempt trains, or until the steering job
follows its stage again; in it are Slurm's own waits, which tests/samples/slurm.py makes short (a node is dead after 20
seconds; the default is 300). Trainings but that of `real_training...` only wait, a second a step. `--only WORDS` runs
some tests and keeps what is known of the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from machine import describe

ROOT = Path(__file__).parents[1]
TESTS = "tests/loop/test_slurm_steered.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "measured.xml"
        only = ["-k", given.only] if given.only else []
        command = [sys.executable, "-m", "pytest", "-m", "slow", TESTS, f"--junitxml={told}", *only]
        code = subprocess.run(command, cwd=ROOT).returncode
        cases = list(ElementTree.parse(told).iter("testcase"))
    if code != 0 or any(case.find("skipped") is not None for case in cases):
        sys.exit(f"{TESTS} failed or was skipped; nothing was written")
    slurm = subprocess.run(["/usr/sbin/slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.strip()
    kept = json.loads(given.out.read_text())["measured"] if given.only and given.out.exists() else {}
    measured = {one.get("name"): float(one.get("value")) for case in cases for one in case.iter("property")}
    result = {"machine": describe(), "slurm": slurm, "measured": {**kept, **measured}}
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
