"""Step 4: what this update consumes, each row with its provenance.

pairs.parquet  completions.parquet  scores.parquet  ->  training_data.parquet  summary.json
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.pairing import pairs_from_scores
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Completion, PreferencePair, Prompt, Score, read_records, write_records
from rlhf_loop.run_dir import write_json


def assemble(
    recipe: Recipe, round: int, *, pairs: Path, prompts: Path, completions: Path, scores: Path, folder: Path
) -> dict[str, Any]:
    """People's pairs and reward-labelled pairs, as `pairing` says; the same two answers never twice.

    Over `max_pairs`, people's pairs go before the reward model's, and clear differences before slight ones.
    Raises `UserError` when the feedback gives the algorithm nothing to learn from.
    """
    settings = recipe.pairing
    summary: dict[str, Any] = {}
    rows: list[PreferencePair] = []
    if "feedback" in settings.sources:
        people: list[PreferencePair] = read_records(pairs, PreferencePair)
        oldest = 0 if settings.feedback_rounds is None else round - settings.feedback_rounds
        recent = [pair for pair in people if pair.round >= oldest]
        summary["feedback"] = {"pairs": len(recent), "older_left_out": len(people) - len(recent)}
        rows += recent
    if "reward" in settings.sources:
        made, counts = pairs_from_scores(
            settings.strategy,
            read_records(prompts, Prompt),
            read_records(completions, Completion),
            read_records(scores, Score),
            min_margin=settings.min_margin,
            max_pairs=None,
            round=round,
            seed=recipe.seed,
        )
        asked = {frozenset((row.chosen_id, row.rejected_id)) for row in rows}
        fresh = [pair for pair in made if frozenset((pair.chosen_id, pair.rejected_id)) not in asked]
        summary["reward"] = {**counts, "already_judged_by_people": len(made) - len(fresh)}
        rows += fresh
    if settings.max_pairs is not None and len(rows) > settings.max_pairs:
        summary["left_out_over_max_pairs"] = len(rows) - settings.max_pairs
        rows = sorted(rows, key=_worth)[: settings.max_pairs]
    if not rows:
        raise UserError(
            f"round {round}: no training pairs for {recipe.update.algorithm} ({summary}). Collect more feedback, lower "
            "`pairing.min_margin`, or raise `generation.samples_per_prompt`"
        )
    summary["pairs"] = len(rows)
    summary["by_origin"] = dict(Counter(row.origin for row in rows))
    write_records(folder / "training_data.parquet", rows)
    write_json(folder / "summary.json", summary)
    return summary


def _worth(pair: PreferencePair) -> tuple[bool, float, str]:
    return pair.origin == "reward", -pair.margin, pair.id
