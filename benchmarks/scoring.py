"""Scoring answers in batches of like length against batches in the order of arrival, padded: one model, one run.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py --out benchmarks/results/scoring.json

Lengths are drawn as those of chat answers are: log-normal, a median of 60 words and a long tail. Both ways go through
the same code but for the batches, and their features are compared. `padded_tokens` says how much each multiplies: the
ratio of the times on a machine without any other cost.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import describe

from rlhf_loop.batches import batches
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.reward_spec import HeadSpec
from rlhf_loop.rewards import scoring
from rlhf_loop.rewards.head import SCORING_TOKENS, Features
from rlhf_loop.rewards.texts import Text

WORDS = (Path(__file__).parent.parent / "recipes" / "data" / "plain_text.jsonl").read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHEEL_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16, help="of a batch in the order of arrival")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    features = Features(HeadSpec(layers=[0.5]), Policy(model=arguments.model, dtype=arguments.dtype))
    rows, starts = features._rows(texts(arguments.texts))
    lengths = [len(row) for row in rows]

    def in_order(lengths: Sequence[int], tokens: int) -> list[list[int]]:
        numbers = range(len(lengths))
        return [list(numbers[start : start + arguments.rows]) for start in numbers[:: arguments.rows]]

    ways = {"like length": batches, "arrival": in_order}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, torch.Tensor] = {}
    features._compute(rows[:8], starts[:8])  # warm
    for _ in range(arguments.repeats):
        for way, make in ways.items():
            scoring.batches = make  # type: ignore[assignment]
            started = time.perf_counter()
            found[way] = features._compute(rows, starts)
            seconds[way].append(time.perf_counter() - started)
            print(f"{way}: {seconds[way][-1]:.2f} s", flush=True)
    ratios = [slow / fast for slow, fast in zip(seconds["arrival"], seconds["like length"], strict=True)]
    apart = (found["arrival"] - found["like length"]).norm(dim=1) / found["arrival"].norm(dim=1)
    budget = SCORING_TOKENS["cpu"]
    result = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "dtype": str(features.trunk.dtype),
        "texts": len(rows),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "rows_in_order_of_arrival": arguments.rows,
        "padded_tokens": {
            way: sum(len(b) * max(lengths[n] for n in b) for b in make(lengths, budget)) for way, make in ways.items()
        },
        "seconds": {way: [round(one, 2) for one in times] for way, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "largest_difference": float(apart.max()),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def texts(number: int) -> list[Text]:
    """Answers of plain words to one question."""
    draw = random.Random(0)
    words = [word for line in WORDS.splitlines() for word in json.loads(line)["text"].split()]
    made = []
    for _ in range(number):
        count = max(3, min(600, round(draw.lognormvariate(4.1, 0.9))))
        start = draw.randrange(len(words))
        made.append(" ".join((words * 2)[start : start + count]))
    return [Text(prompt=(("user", "What do you think?"),), completion=answer) for answer in made]


if __name__ == "__main__":
    main()
