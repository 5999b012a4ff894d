"""How long an exact search for the most similar texts takes, among 100,000 and a million.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --queries 1 --out benchmarks/results/retrieval.json

Vectors are random directions of SmolLM2's width, in files as the step `embed` writes them. A search reads all of them,
so what they hold does not change its time. The files are in the page cache: each size is searched once before it is
measured. `cpu_milliseconds`: of all threads; what other work takes away is not in it. `same`: whether the rows found
are those of one product in float64.

`--parts quality`: of the 240 prompts of the quickstart, how many of each one's five nearest are of its kind (their
first tag: recommend, explain, compare, ...), by layer, with and without taking the mean out.
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

from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.retrieval.embedding import embed, unit
from rlhf_loop.retrieval.index import Index, Key, write
from rlhf_loop.rewards.trunk import load_trunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=["speed", "quality"], default=["speed", "quality"])
    parser.add_argument("--model", default=WHEEL_MODEL)
    arguments = parser.parse_args()
    result: dict[str, object] = {"machine": describe(), "threads": torch.get_num_threads(), "k": arguments.k}
    if arguments.out and arguments.out.exists():
        result = {**json.loads(arguments.out.read_text()), **result}
    if "speed" in arguments.parts:
        measured = [measure(rows, arguments.dtype, arguments) for rows in arguments.rows]
        result["width"] = arguments.width
        result["searches"] = [row for rows in measured for row in rows]
        result["peak_memory_gib"] = round(peak_memory(), 2)
    if "quality" in arguments.parts:
        result["quality"] = quality(arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(rows: int, dtype: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Medians over the repeats, each with other queries, for each number of queries at once."""
    folder = Path(tempfile.mkdtemp(prefix="retrieval-"))
    generator = torch.Generator().manual_seed(0)
    try:
        drawn = torch.nn.functional.normalize(torch.randn(100_000, arguments.width, generator=generator))
        for part in range(0, rows, 100_000):  # as rounds would leave them
            vectors = drawn.roll(part // 100_000, dims=1)  # others, drawn no less at random
            (folder / str(part)).mkdir()
            keys = [Key(prompt_id=f"p{number}") for number in range(part, part + 100_000)]
            write(folder / str(part), "prompts", keys, vectors, dtype)
        index = Index.open([folder / str(part) for part in range(0, rows, 100_000)], "prompts")
        index.search(torch.ones(1, arguments.width), arguments.k)  # warm
        found = []
        for queries in arguments.queries:
            times, spent = [], []
            for _ in range(arguments.repeats):
                asked = torch.nn.functional.normalize(torch.randn(queries, arguments.width, generator=generator))
                started, used = time.perf_counter(), time.process_time()
                _, places = index.search(asked, arguments.k)
                times.append(time.perf_counter() - started)
                spent.append(time.process_time() - used)
            row = {
                "rows": rows,
                "dtype": dtype,
                "queries": queries,
                "milliseconds": round(1000 * statistics.median(times), 1),
                "slowest": round(1000 * max(times), 1),
                "cpu_milliseconds": round(1000 * statistics.median(spent), 1),
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


def quality(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """The share of the nearest prompts that are of a prompt's kind; `chance` is that of all others."""
    folder = Path(__file__).parent.parent / "recipes" / "data"
    files = [folder / f"quickstart_{name}.jsonl" for name in ("train", "dev", "test")]
    prompts = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    kinds = [prompt["tags"][0] for prompt in prompts]
    alike = torch.tensor([[one == other for other in kinds] for one in kinds])
    chance = float((alike.sum() - len(kinds)) / (len(kinds) * (len(kinds) - 1)))
    policy = Policy(model=arguments.model, dtype="float32")
    found: list[dict[str, object]] = []
    for layer in (0.25, 0.5, 0.75, 1.0):
        trunk, tokenizer, layers = load_trunk("policy", policy, [layer])
        states = embed(trunk, tokenizer, layers[0], [prompt["prompt"] for prompt in prompts])
        for centred in (False, True):
            vectors = unit(states, states.mean(0) if centred else torch.zeros(states.shape[1]))
            cosines = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
            nearest = cosines.topk(arguments.k, dim=1).indices
            share = float(alike.gather(1, nearest).float().mean())
            found.append(
                {"layer": layer, "centred": centred, "of_its_kind": round(share, 3), "chance": round(chance, 3)}
            )
            print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    main()
