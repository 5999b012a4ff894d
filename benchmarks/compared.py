"""A sweep, run whole or read again, as JSON: what each cell came to and how it differs from the reference.

    python benchmarks/compared.py recipes/compare/critiques.yaml --folder runs/critiques
    python benchmarks/compared.py recipes/compare/algorithms.yaml --folder runs/algorithms

Writes benchmarks/results/compare_NAME.json and prints a table. Runs that are complete in the folder are not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import describe

from rlhf_loop import compare
from rlhf_loop.comparison.paired import Estimate
from rlhf_loop.progress import RunProgress

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = compare(options.sweep, options.folder, progress=RunProgress())
    cells = {
        name: {
            "seeds": list(cell.seeds),
            "promoted": cell.promoted,
            "p_holm": cell.p_holm,
            "values": _estimates(cell.values),
            "differences": _estimates(cell.differences),
        }
        for name, cell in found.cells.items()
    }
    out = options.out or RESULTS / f"compare_{options.sweep.stem}.json"
    result = {
        "machine": describe(),
        "sentence": found.sentence,
        "unequal": list(found.unequal),
        "errors": dict(found.errors),
        "cells": cells,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n| cell | promoted | win-rate over the base | difference | p (Holm) | words | perplexity over the base's |")
    print("| --- | --: | --- | --- | --: | --- | --- |")
    for name, cell in cells.items():
        values, differences = cell["values"], cell["differences"]
        p = "" if cell["p_holm"] is None else f"{cell['p_holm']:.2g}"
        print(
            f"| {name} | {cell['promoted']} of {len(cell['seeds'])} | {_shown(values.get('win_rate'))} "
            f"| {_shown(differences.get('win_rate'), sign='+')} | {p} | {_shown(values.get('words'), digits=1)} "
            f"| {_shown(values.get('perplexity'))} |"
        )
    print(f"\n{found.sentence}")


def _estimates(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in estimates.items()}


def _shown(estimate: Mapping[str, Any] | None, sign: str = "", digits: int = 2) -> str:
    if estimate is None:
        return ""
    form = f"{sign}.{digits}f"
    if estimate["low"] is None:
        return f"{estimate['mean']:{form}}"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


if __name__ == "__main__":
    main()
