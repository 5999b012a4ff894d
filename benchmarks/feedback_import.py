"""How fast feedback is imported, and in how much memory.

    python benchmarks/feedback_import.py

Writes JSON Lines of preferences (each with a prompt and two answers of its own, the most work there can be), imports
each file into a new SQLite store in a process of its own, and prints rows a second and peak memory: without redaction
and with it, and for ten times as many rows. The results go to `benchmarks/results/feedback_import.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine

RESULTS = Path(__file__).parent / "results" / "feedback_import.json"
WORDS = ("answer", "because", "light", "reason", "people", "water", "every", "sky", "blue", "question", "time", "other")

CHILD = """
import json, resource, sys, time
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.store.store import Store
file, store, redact = sys.argv[1:]
with Store.open(store) as opened:
    started, cpu = time.perf_counter(), time.process_time()
    first = import_file(opened, file, redact=redact)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({
    "rows": first.rows, "accepted": first.accepted, "redacted": first.redacted, "seconds": round(seconds, 2),
    "cpu_seconds": round(cpu, 2), "rows_per_second": round(first.rows / seconds),
    "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""


def write_preferences(path: Path, rows: int, per_prompt: int = 1) -> None:
    """`rows` preferences of 37 people; one in a hundred prompts holds an e-mail address."""
    chance = random.Random(0)

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    prompt = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % per_prompt == 0:
                address = f" Write to person{number}@example.org." if number % 100 == 0 else ""
                prompt = f"{text(20)} {number}?{address}"
            row = {
                "id": str(number),
                "prompt": prompt,
                "chosen": text(30),
                "rejected": text(30),
                "annotator": f"annotator-{number % 37}",
            }
            file.write(json.dumps(row) + "\n")


def measure(file: Path, redact: str, folder: Path) -> dict[str, Any]:
    """Rows a second and peak memory of one import, in a process of its own."""
    store = folder / "measured.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{store}{suffix}").unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, str(file), str(store), redact]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--rows", type=int, default=100_000, help="preferences; the large file has ten times as many"
    )
    arguments.add_argument("--repeats", type=int, default=3, help="times that each small import is measured")
    arguments.add_argument("--out", type=Path, default=RESULTS)
    given = arguments.parse_args()
    results: dict[str, Any] = {"machine": machine.describe(), "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [
            ("plain", given.rows, 1, "none", given.repeats),
            ("plain, 4 a prompt", given.rows, 4, "none", given.repeats),
            ("redacted", given.rows, 1, "patterns", given.repeats),
            ("plain, ten times as many", given.rows * 10, 1, "none", 1),
        ]
        for case, rows, per_prompt, redact, repeats in cases:
            file = folder / f"{rows}_{per_prompt}.jsonl"
            if not file.exists():
                write_preferences(file, rows, per_prompt)
            measured = [measure(file, redact, folder) for _ in range(repeats)]
            best = max(measured, key=lambda one: one["rows_per_second"])
            results["cases"][case] = {**best, "all_rows_per_second": [one["rows_per_second"] for one in measured]}
            print(
                f"{case:<26} {best['rows']:>9,} rows  {best['rows_per_second']:>7,} a second  "
                f"{best['cpu_seconds'] / best['rows'] * 1e6:5.1f} us of CPU a row  peak {best['peak_mib']:,} MiB"
            )
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
