"""All figures about feedback, one after the other; run it with nothing else running.

    python benchmarks/feedback.py --out benchmarks/results [--data DIR] [--postgres URL]

import: rows a second and memory (`feedback_import.py`). quality: the check and the snapshot of a million records, and
with `--data` (the UKP files) what consensus is worth (`feedback_quality.py`). service: posts a second, and annotators
whose processes and server are killed (`feedback_service.py`). Takes about half an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of the UKP files")
    parser.add_argument("--postgres", help="URL of an empty database, for the service")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    quality = arguments.out / "feedback_quality.json"
    run("feedback_import.py", "--out", arguments.out / "feedback_import.json")
    run("feedback_quality.py", "--parts", "check", "snapshot", "--out", quality)
    if arguments.data:
        run("feedback_quality.py", "--parts", "ukp", "--data", arguments.data, "--out", quality)
    postgres = ["--postgres", arguments.postgres] if arguments.postgres else []
    run("feedback_service.py", *postgres, "--out", arguments.out / "feedback_service.json")


def run(script: str, *arguments: object) -> None:
    print(f"== {script} {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
