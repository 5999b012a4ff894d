"""How long an exact search for the most similar texts takes, among 100,000 and a million.

    OMP_NUM_THREADS=2 python benchmarks/retrieval.py --out benchmarks/results/retrieval.json

Vectors are random directions of SmolLM2's width, in float16 and float32 files as the step `embed` writes them. A search
reads all of them, so what they hold does not change its time. The files are in the page cache: each size is searched
once before it is measured. `same`: whether the rows found are those of one product in float64.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe, peak_memory

from rlhf_loop.retrieval.index import Index, Key, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = [measure(rows, dtype, arguments) for dtype in ("float16", "float32") for rows in arguments.rows]
    result = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "width": arguments.width,
        "k": arguments.k,
        "searches": [row for rows in measured for row in rows],
        "peak_memory_gib": round(peak_memory(), 2),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(rows: int, dtype: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Medians over the repeats, each with other queries, for each number of queries at once."""
    folder = Path(tempfile.mkdtemp(prefix="retrieval-"))
    generator = torch.Generator().manual_seed(0)
    try:
        for part in range(0, rows, 100_000):  # as rounds would leave them
            vectors = torch.nn.functional.normalize(torch.randn(100_000, arguments.width, generator=generator))
            (folder / str(part)).mkdir()
            keys = [Key(prompt_id=f"p{number}") for number in range(part, part + 100_000)]
            write(folder / str(part), "prompts", keys, vectors, dtype)
        index = Index.open([folder / str(part) for part in range(0, rows, 100_000)], "prompts")
        index.search(torch.ones(1, arguments.width), arguments.k)  # warm
        found = []
        for queries in arguments.queries:
            times = []
            for _ in range(arguments.repeats):
                asked = torch.nn.functional.normalize(torch.randn(queries, arguments.width, generator=generator))
                started = time.perf_counter()
                _, places = index.search(asked, arguments.k)
                times.append(time.perf_counter() - started)
            row = {
                "rows": rows,
                "dtype": dtype,
                "queries": queries,
                "milliseconds": round(1000 * statistics.median(times), 1),
                "slowest": round(1000 * max(times), 1),
                "same": same(index, asked[0], places[0], arguments.k),
            }
            print(row, flush=True)
            found.append(row)
        return found
    finally:
        shutil.rmtree(folder)


def same(index: Index, query: torch.Tensor, places: torch.Tensor, k: int) -> bool:
    """Whether these are the rows of the `k` largest products in float64."""
    products = np.concatenate([matrix.numpy().astype(np.float64) @ query.numpy() for matrix in index._matrices])
    return set(np.argsort(-products)[:k].tolist()) == set(places.tolist())


if __name__ == "__main__":
    main()
