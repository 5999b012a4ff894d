"""What the comparison showed: each cell against the reference, with what may be said of it in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_loop.comparison.paired import Estimate, crossed_mean, holm
from rlhf_loop.comparison.results import MEASURES, ByPrompt, Measured
from rlhf_loop.resampling import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """What a cell came to after its last round, and how that differs from the reference."""

    cell: str
    seeds: Sequence[int]  # whose runs are complete
    values: Mapping[str, Estimate]  # measure -> over the seeds
    differences: Mapping[str, Estimate]  # measure -> over seeds that are complete in both; empty for the reference
    p_holm: float | None  # of the first measure, over all cells
    left_out: int  # prompts that not every seed answered, in the first measure
    promoted: int  # of its complete runs, how many are judged by a policy that a round of theirs made


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A cell after a round, over the seeds that have come so far."""

    round: int
    labels: float
    values: Mapping[str, Estimate]
    seeds: int


def cell_results(
    measured: Mapping[str, Sequence[Measured]], reference: str, confidence: float
) -> dict[str, CellResult]:
    """Of each cell after its last round, the reference first; cells without a complete run are left out.

    A difference is taken prompt by prompt and seed by seed, so what a seed or a prompt does to both cells cancels out.
    """
    ended = {cell: {one.run.seed: one.answers[-1] for one in runs if one.complete} for cell, runs in measured.items()}
    found = {}
    for cell, by_seed in ended.items():
        if not by_seed:
            continue
        differences, left_out = {}, 0
        for name in MEASURES if cell != reference else ():
            both = [seed for seed in by_seed if seed in ended[reference]]
            pairs = [_difference(by_seed[seed].get(name, {}), ended[reference][seed].get(name, {})) for seed in both]
            if (table := by_prompt(pairs)) is not None:
                differences[name] = _estimate(table, confidence)
                if name == next(iter(MEASURES)):
                    left_out = len({prompt for pair in pairs for prompt in pair}) - table.shape[1]
        found[cell] = CellResult(
            cell=cell,
            seeds=list(by_seed),
            values=_estimates(list(by_seed.values()), confidence),
            differences=differences,
            p_holm=None,
            left_out=left_out,
            promoted=sum(bool(one.rows[-1]["round_of_policy_in_force"]) for one in measured[cell] if one.complete),
        )
    return _with_holm(found)


def curve(runs: Sequence[Measured], confidence: float) -> list[Point]:
    """A cell round by round: what its policy in force gave, for the labels that it had learned from."""
    points = []
    for number in range(max((len(one.rows) for one in runs), default=0)):
        there = [one for one in runs if len(one.rows) > number]
        labels = sum(float(one.rows[number]["labels"]) for one in there) / len(there)
        values = _estimates([one.answers[number] for one in there], confidence)
        points.append(Point(round=number, labels=labels, values=values, seeds=len(there)))
    return points


def other_yardsticks(measured: Mapping[str, Sequence[Measured]], reference: str) -> list[str]:
    """Cells that are measured against other answers of the base, or by another judge, than the reference, in words: the
    same seed gives the base's answers other scores."""
    theirs_by_seed = {one.run.seed: one.of_base for one in measured[reference] if one.of_base}
    found = []
    for cell, runs in measured.items():
        both = [(one.of_base, theirs_by_seed.get(one.run.seed, {})) for one in runs]
        both = [(ours, theirs) for ours, theirs in both if ours and theirs]
        prompts = sum(len(ours.keys() | theirs.keys()) for ours, theirs in both)
        apart = sum(
            abs(ours.get(prompt, np.inf) - theirs.get(prompt, -np.inf)) > 1e-6
            for ours, theirs in both
            for prompt in ours.keys() | theirs.keys()
        )
        if apart:
            found.append(
                f"{cell}: the base's answers have other scores than in {reference} for {apart} of {prompts} held-out "
                "prompts; the cells differ in the base, in how it is sampled, in the prompts or in the judge"
            )
    return found


def by_prompt(of_seeds: Sequence[ByPrompt]) -> Floats | None:
    """(S, P) of the prompts that every seed has a value of; None where there are none."""
    if not of_seeds:
        return None
    shared = sorted(set.intersection(*(set(values) for values in of_seeds)))
    return np.array([[values[prompt] for prompt in shared] for values in of_seeds]) if shared else None


def sentence(results: Mapping[str, CellResult], reference: str, confidence: float) -> str:
    """What was shown, in plain words, "no difference shown" included."""
    if reference not in results:
        return f"Nothing can be said: no run of the reference {reference} is complete."
    tested = [one for one in results.values() if "win_rate" in one.differences]
    if not tested:
        return f"Nothing can be said: no cell shares a complete seed with the reference {reference}."
    said: dict[str, list[str]] = {"better than": [], "worse than": [], "no difference shown from": []}
    for one in sorted(tested, key=lambda one: -one.differences["win_rate"].mean):
        found = one.differences["win_rate"]
        shown = one.p_holm is not None and one.p_holm < 1 - confidence
        verdict = "no difference shown from" if not shown else "better than" if found.mean > 0 else "worse than"
        said[verdict].append(f"{one.cell} ({signed(found)}, Holm p {p_text(one.p_holm)})")
    text = "; ".join(f"{verdict} {reference}: {', '.join(cells)}" for verdict, cells in said.items() if cells)
    few = min(one.differences["win_rate"].seeds for one in tested)
    end = {1: "One seed: this says nothing of other seeds.", 2: "Two seeds say little of others."}.get(few, "")
    none = [one.cell for one in results.values() if not one.promoted]
    if none:
        end = f"No gate promoted a policy in {', '.join(none)}, judged by the one begun with. {end}"
    return f"In win-rate over the base policy {text}. {end}".rstrip()


def signed(value: Estimate, digits: int = 2) -> str:
    """A difference with its interval: +.04 [-.02, +.10] in full figures."""
    if value.low is None or value.high is None:
        return plus(value.mean, digits)
    return f"{plus(value.mean, digits)} [{plus(value.low, digits)}, {plus(value.high, digits)}]"


def plus(value: float, digits: int = 2) -> str:
    """A number with its sign; none that is shown as zero is less than zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def p_text(p: float | None) -> str:
    """A p-value for people."""
    return "unknown" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference(ours: ByPrompt, theirs: ByPrompt) -> dict[str, float]:
    return {prompt: value - theirs[prompt] for prompt, value in ours.items() if prompt in theirs}


def _estimates(answers: Sequence[Mapping[str, ByPrompt]], confidence: float) -> dict[str, Estimate]:
    tables = {name: by_prompt([one.get(name, {}) for one in answers]) for name in MEASURES}
    found = {name: _estimate(table, confidence) for name, table in tables.items() if table is not None}
    if (rate := found.get("win_rate")) is not None and rate.low is not None and rate.high is not None:
        found["win_rate"] = replace(rate, low=max(0.0, rate.low), high=min(1.0, rate.high))  # a share
    return found


def _estimate(table: Floats, confidence: float) -> Estimate:
    """Of (S, P) values; where there is one a seed, seeds are what others are judged by."""
    if table.shape[1] > 1:
        return crossed_mean(table, confidence)
    return replace(crossed_mean(table.T, confidence), seeds=len(table), prompts=1)


def _with_holm(results: dict[str, CellResult]) -> dict[str, CellResult]:
    first = next(iter(MEASURES))
    tested = [
        (cell, p)
        for cell, one in results.items()
        if first in one.differences and (p := one.differences[first].p) is not None
    ]
    adjusted = dict(zip((cell for cell, _ in tested), holm([p for _, p in tested]), strict=True))
    return {cell: replace(one, p_holm=adjusted.get(cell)) for cell, one in results.items()}
