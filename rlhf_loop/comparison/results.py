"""What the runs of a sweep came to: a row for each cell, seed and round, and outcomes prompt by prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_loop.comparison.budget import Spent, spent
from rlhf_loop.comparison.sweep import CellRun
from rlhf_loop.evaluation.winrate import outcomes
from rlhf_loop.report.data import Round, read_rounds
from rlhf_loop.run_dir import RunDir
from rlhf_loop.runs import Run

MEASURES = {
    "win_rate": "win-rate over the base",
    "judge": "judge's score",
    "words": "words an answer",
    "kl": "KL to the base",
    "distinct_2": "distinct-2",
    "perplexity": "perplexity over the base's",
}
"""What is measured, and what people call it; the first is what cells are tested on. The last two are of all answers of
a seed together: variety and coherence."""

ALL = "all"
"""Stands for the prompt of what is measured of all answers together."""

ByPrompt = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run has come to."""

    run: CellRun
    rows: Sequence[dict[str, Any]]  # one a complete round
    answers: Sequence[Mapping[str, ByPrompt]]  # of each: measure -> prompt -> mean over samples, of the policy in force
    spent: Sequence[Spent]
    of_base: ByPrompt = field(default_factory=dict)  # prompt -> the judge's score of the base policy's answers

    @property
    def complete(self) -> bool:
        """Whether all rounds of the recipe are."""
        return len(self.rows) == self.run.recipe.rounds + 1


def measure(run: CellRun, prices: Mapping[str, float]) -> Measured:
    """The complete rounds of a run, up to the first that is not, at most the recipe's."""
    rounds: list[Round] = []
    for number, round in enumerate(read_rounds(RunDir(run.folder))):
        if round.number != number or not round.complete or number > run.recipe.rounds:
            break
        rounds.append(round)
    costs = spent(Run(run.recipe, run.folder), rounds) if rounds else []
    rows, answers, in_force, seconds = [], [], (0, _evaluation_of_start(rounds)), 0.0
    for round, cost in zip(rounds, costs, strict=True):
        if round.number and round.decision.get("promoted"):
            in_force = (round.number, round.evaluation)
        seconds += float(round.manifest.get("seconds") or 0)
        by_prompt = of_answers(in_force[1], run.recipe.evaluation.tie_below)
        answers.append(by_prompt)
        rows.append(
            {
                "cell": run.cell,
                "seed": run.seed,
                "round": round.number,
                "outcome": round.outcome,
                "round_of_policy_in_force": in_force[0],
                **{f"{name}_in_force": _mean(values.values()) for name, values in by_prompt.items()},
                **_numbers(round),
                "labels": cost.labels(prices),
                **{f"labels_{kind}": count for kind, count in sorted(cost.given.items())},
                "samples": cost.samples,
                "updates": cost.updates,
                "seconds": seconds,
                "peak_memory_bytes": round.manifest.get("peak_memory_bytes"),
            }
        )
    of_base = of_answers(rounds[0].evaluation, 0.0).get("judge", {}) if rounds else {}
    return Measured(run=run, rows=rows, answers=answers, spent=costs, of_base=of_base)


def of_answers(evaluation: Mapping[str, Any], tie_below: float) -> dict[str, dict[str, float]]:
    """Measure -> prompt -> its mean over the samples of an evaluation, or `ALL` -> its value; measures that were not
    taken are left out."""
    rows = evaluation.get("rows") or []
    values = {
        "win_rate": [_won(row, tie_below) for row in rows],
        "judge": [row["candidate_score"] for row in rows],
        "words": [row["candidate_words"] for row in rows],
        "kl": [row.get("kl") for row in rows],
    }
    found = {}
    for name, of_rows in values.items():
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for row, value in zip(rows, of_rows, strict=True):
            if value is not None and np.isfinite(value):
                by_prompt[row["prompt_id"]].append(float(value))
        if by_prompt:
            found[name] = {prompt: sum(several) / len(several) for prompt, several in by_prompt.items()}
    for name, block, key in (("distinct_2", "diversity", "distinct_2"), ("perplexity", "perplexity", "ratio")):
        if (value := (evaluation.get(block) or {}).get(key)) is not None:
            found[name] = {ALL: float(value)}
    return found


def write_results(path: Path, measured: Iterable[Measured]) -> None:
    """All rows as one Parquet file, each column with one type; what a row has not is null."""
    import pyarrow as pa

    from rlhf_loop.record_files import write_table

    rows = [row for one in measured for row in one.rows]
    columns = dict.fromkeys(name for row in rows for name in row)
    write_table(path, pa.table({name: [row.get(name) for row in rows] for name in columns}))


def _evaluation_of_start(rounds: Sequence[Round]) -> dict[str, Any]:
    """Of the policy that the rounds start from: the warm start's, or the base's, which is even with itself."""
    if not rounds:
        return {}
    return rounds[0].json("evaluate_warm_start", "evaluation.json") or rounds[0].evaluation


def _numbers(round: Round) -> dict[str, Any]:
    """What was measured of the round's own policy, promoted or not; of round 0 the base's."""
    evaluation = round.evaluation
    rates = {
        f"{name}{end}": (evaluation.get(key) or {}).get(part)
        for name, key in (
            ("win_rate", "win_rate_vs_base"),
            ("win_rate_vs_previous", "win_rate_vs_previous"),
            ("length_matched_win_rate", "length_matched_win_rate_vs_base"),
        )
        for end, part in (("", "mean"), ("_low", "low"), ("_high", "high"), ("_n", "n"))
    }

    def of(block: str, key: str) -> Any:
        return (evaluation.get(block) or {}).get(key)

    return {
        **rates,
        "judge_score": of("judge", "candidate"),
        "judge_score_of_base": of("judge", "base"),
        "proxy_score": of("proxy", "candidate"),
        "proxy_win_rate": ((evaluation.get("proxy") or {}).get("win_rate_vs_base") or {}).get("mean"),
        "kl": of("kl", "per_completion"),
        "words": of("length", "words"),
        "finished": of("length", "finished"),
        "distinct_2": of("diversity", "distinct_2"),
        "self_bleu": of("diversity", "self_bleu"),
        "perplexity_ratio": of("perplexity", "ratio"),
        "plain_text_ratio": of("plain_text_perplexity", "ratio"),
    }


def _won(row: Mapping[str, Any], tie_below: float) -> float | None:
    """What the candidate's answer won against the base's; None where the judge did not say. A judge that looks at both
    answers at once scores neither, and has what was won in the place of the candidate's score."""
    ours, base = row["candidate_score"], row["base_score"]
    return ours if base is None else float(outcomes([ours], [base], tie_below)[0])


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
