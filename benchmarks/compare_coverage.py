"""How often an interval over prompts and seeds holds the truth: ours, and a bootstrap of both, on made-up differences.

    python benchmarks/compare_coverage.py

Prints the table of docs/compare.md. The bootstrap draws seeds and prompts with replacement, both at once (Owen 2007).
"""

from __future__ import annotations

import numpy as np

from rlhf_loop.comparison.paired import crossed_mean
from rlhf_loop.resampling import percentile_interval

COMPARISONS, RESAMPLES = 2000, 400
SPREADS = ((0.0, 0.0, 1.0), (0.0, 0.5, 1.0), (0.1, 0.3, 1.0), (0.3, 0.3, 1.0))
"""Standard deviations of seeds, prompts and the rest."""


def main() -> None:
    print("| seeds | prompts | spread | covered | width | bootstrap: covered | width |")
    print("| --: | --: | --- | --: | --: | --: | --: |")
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            print(row(seeds, 96, spread), flush=True)


def row(seeds: int, prompts: int, spread: tuple[float, float, float]) -> str:
    generator = np.random.default_rng(0)
    covered, width = np.zeros(2), np.zeros(2)
    for _ in range(COMPARISONS):
        of_seeds, of_prompts, rest = (
            size * generator.normal(size=shape)
            for size, shape in zip(spread, ((seeds, 1), (1, prompts), (seeds, prompts)), strict=True)
        )
        values = of_seeds + of_prompts + rest
        found = crossed_mean(values)
        assert found.low is not None
        assert found.high is not None
        for place, (low, high) in enumerate(((found.low, found.high), bootstrap(values, generator))):
            covered[place] += low <= 0 <= high
            width[place] += high - low
    ours, theirs = zip(covered / COMPARISONS, width / COMPARISONS, strict=True)
    shown = " : ".join(f"{size:g}" for size in spread)
    return f"| {seeds} | {prompts} | {shown} | {ours[0]:.2f} | {ours[1]:.2f} | {theirs[0]:.2f} | {theirs[1]:.2f} |"


def bootstrap(values: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    seeds, prompts = values.shape
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    drawn_prompts = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    means = ((drawn_seeds @ values) * drawn_prompts).sum(1) / values.size
    return percentile_interval(means, 0.95)


if __name__ == "__main__":
    main()
