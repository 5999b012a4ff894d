"""Step 4: what this update consumes, each row with its provenance.

snapshot/  completions.parquet  scores.parquet  ->  training_data.parquet  summary.json
                                                    critiques.parquet, for a loss that learns from them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlhf_loop.algorithms import ALGORITHMS, AlgorithmName, Consumes
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import as_table, joined, read_records, write_records, write_table
from rlhf_loop.records import Completion, CritiquedCompletion, Demonstration, LabelledCompletion, Prompt, Score
from rlhf_loop.rows.critiques import Material, demonstrations_of, pairs_of
from rlhf_loop.rows.demonstrations import best_of_n
from rlhf_loop.rows.pairs import pairs_from_scores


def assemble(
    recipe: Recipe,
    round: int,
    algorithm: AlgorithmName,
    *,
    frozen: Path,
    folder: Path,
    completions: Path | None = None,
    scores: Path | None = None,
    critiqued_scores: Path | None = None,
) -> dict[str, Any]:
    """Writes the rows that `algorithm` consumes, of the training split alone.

    `frozen`: the round's snapshot. `completions` and `scores`: files of the waiting candidates; labels and
    demonstrations need none. `critiqued_scores`: of answers that were complained of. Raises `UserError` with the remedy
    when there is nothing for the algorithm to learn from.
    """
    consumes = ALGORITHMS[algorithm].consumes
    waiting: list[Completion] = read_records(completions, Completion) if completions else []
    known: list[Score] = read_records(scores, Score) if scores else []
    of_critiqued: list[Score] = read_records(critiqued_scores, Score) if critiqued_scores else []
    prompts: list[Prompt] = read_records(frozen / "prompts.parquet", Prompt)
    rows: list[Any]
    summary: dict[str, Any] = {}
    if consumes == "pairs":
        table = _pairs(recipe, round, frozen, prompts, waiting, known, of_critiqued, summary)
        origins = [f"{origin} pairs" for origin in table.column("origin").to_pylist()] if table.num_rows else []
    elif consumes == "labels":
        given: list[LabelledCompletion] = read_records(frozen / "labels.parquet", LabelledCompletion)
        rows = [row for row in given if row.round >= _oldest(recipe, round)]
        summary["older_left_out"] = len(given) - len(rows)
        origins = [f"{row.origin} thumbs {'up' if row.label else 'down'}" for row in rows]
    elif consumes == "demonstrations":
        written: list[Demonstration] = read_records(frozen / "demonstrations.parquet", Demonstration)
        rows = [row for row in written if row.origin == "reference" or row.round >= _oldest(recipe, round)]
        summary["older_left_out"] = len(written) - len(rows)
        if round and recipe.critiques is not None:
            material = _material(recipe, round, frozen, prompts, waiting, known)
            for name, method in recipe.critiques.gives("demonstrations").items():
                made, none = demonstrations_of(name, method, material)
                summary.setdefault("critiques", {})[name] = {"demonstrations": len(made), "none": dict(none)}
                rows += made
        origins = [_DEMONSTRATIONS[row.origin] for row in rows]
    elif consumes == "best_of_n":
        rows, summary["reward"] = best_of_n(prompts, waiting, known, recipe.pairing.min_margin, round)
        origins = ["best-of-n answers" for _ in rows]
    else:  # the prompts that the waiting candidates answer: as many as the other updates learn from
        drawn = {completion.prompt_id for completion in waiting}
        rows = [prompt for prompt in prompts if prompt.id in drawn]
        origins = ["prompts" for _ in rows]
    if not origins:
        raise UserError(f"round {round}: nothing to train {algorithm} on ({summary}). {REMEDIES[consumes]}")
    summary["rows"] = len(origins)
    summary["consumes"] = consumes
    summary["by_origin"] = dict(Counter(origins))
    write_table(folder / "training_data.parquet", table if consumes == "pairs" else as_table(rows))
    if round and recipe.critiques is not None:
        _critiques_for_terms(recipe, round, frozen, folder, summary)
    write_json(folder / "summary.json", summary)
    return summary


REMEDIES: dict[Consumes, str] = {
    "pairs": "Collect more feedback, lower `pairing.min_margin`, or raise `generation.samples_per_prompt`",
    "labels": "Collect thumbs (feedback of kind `thumb`, or pairs called both bad), let a simulated annotator give "
    "them with `feedback.annotator.thumbs_above: 0.5`, or raise `pairing.feedback_rounds`",
    "demonstrations": "Give prompts a `reference` answer, collect edits of answers (feedback of kind `edit`), let a "
    "simulated annotator make them with `feedback.annotator.edits: true`, or raise `pairing.feedback_rounds`",
    "best_of_n": "Lower `pairing.min_margin`, raise `generation.samples_per_prompt` or `generation.temperature`",
    "prompts": "Give `prompts.train`",
}
"""What to do when there is nothing of a kind."""


_DEMONSTRATIONS = {"edit": "edits", "reference": "reference answers", "critique": "answers with their critiques"}


def _pairs(
    recipe: Recipe,
    round: int,
    frozen: Path,
    prompts: list[Prompt],
    completions: list[Completion],
    scores: list[Score],
    critiqued_scores: list[Score],
    summary: dict[str, Any],
) -> pa.Table:
    """People's pairs and reward-labelled pairs, as `pairing` says; the same two answers never twice.

    Over `max_pairs`, edits go before people's pairs, these before what people complained of and that before the reward
    model's own, and clear differences before slight ones. People's pairs, which grow with every round, are copied by
    columns.
    """
    settings = recipe.pairing
    parts: list[pa.Table] = []
    if "feedback" in settings.sources:
        with reading(frozen / "pairs.parquet"):
            people = pq.read_table(frozen / "pairs.parquet")
        recent = people.filter(pc.greater_equal(people["round"], _oldest(recipe, round))) if len(people) else people
        summary["feedback"] = {"pairs": len(recent), "older_left_out": len(people) - len(recent)}
        parts.append(recent)
    if recipe.critiques is not None:
        summary["critiques"] = {}
        material = _material(recipe, round, frozen, prompts, completions, [*critiqued_scores, *scores])
        said_by: dict[tuple[str, ...], str] = {
            (id,): row.origin for row in material.critiques for id in row.feedback_ids
        }
        said_by[()] = "implicit"  # a user's next message, which is no piece of feedback
        for name, method in recipe.critiques.gives("pairs").items():
            of_method, none = pairs_of(name, method, material)
            asked = {pair for part in parts for pair in _answers(part)}
            kept = [pair for pair in of_method if frozenset((pair.chosen_id, pair.rejected_id)) not in asked]
            summary["critiques"][name] = {
                "pairs": len(kept),
                "said_by": dict(Counter(said_by[pair.feedback_ids[:1]] for pair in kept)),
                "already_there": len(of_method) - len(kept),
                "none": dict(none),
            }
            parts.append(as_table(kept))
    if "reward" in settings.sources:
        made, counts = pairs_from_scores(
            settings.strategy,
            prompts,
            completions,
            scores,
            min_margin=settings.min_margin,
            max_pairs=None,
            round=round,
            seed=recipe.seed,
        )
        asked = {pair for part in parts for pair in _answers(part)}
        fresh = [pair for pair in made if frozenset((pair.chosen_id, pair.rejected_id)) not in asked]
        summary["reward"] = {**counts, "already_judged_by_people": len(made) - len(fresh)}
        parts.append(as_table(fresh))
    rows = joined(parts)
    if settings.max_pairs is not None and len(rows) > settings.max_pairs:
        summary["left_out_over_max_pairs"] = len(rows) - settings.max_pairs
        worth = zip(*(rows.column(name).to_pylist() for name in ("origin", "margin", "id")), strict=True)
        order = sorted((_LATER.get(origin, 1), -margin, id, place) for place, (origin, margin, id) in enumerate(worth))
        rows = rows.take([place for *_, place in order[: settings.max_pairs]])
    return rows


_LATER = {"edit": 0, "fresh": 2, "revision": 2, "reward": 3}  # people's verdicts: 1
"""Which pairs are left out last over `max_pairs`, by their origin; margins compare only within one of these."""


def _material(
    recipe: Recipe,
    round: int,
    frozen: Path,
    prompts: list[Prompt],
    candidates: list[Completion],
    scores: list[Score],
) -> Material:
    return Material(
        critiques=_critiques(recipe, round, frozen),
        prompts=prompts,
        candidates=candidates,
        scores={score.completion_id: score.value for score in scores},
        reward_model=scores[0].reward_model if scores else None,
        round=round,
        seed=recipe.seed,
    )


def _critiques_for_terms(recipe: Recipe, round: int, frozen: Path, folder: Path, summary: dict[str, Any]) -> None:
    """Writes the critiques that a loss learns from, those with words, and good verdicts, where the recipe has one."""
    assert recipe.critiques is not None
    terms = recipe.critiques.gives("term")
    if terms:
        rows = [row for row in _critiques(recipe, round, frozen) if row.critique or row.label]
        write_records(folder / "critiques.parquet", rows)
        summary["critiques"] = {**summary.get("critiques", {}), "terms": list(terms), "rows_for_terms": len(rows)}
        for origin, count in Counter(row.origin for row in rows if row.critique).items():
            summary["by_origin"]["next messages of users" if origin == "implicit" else f"{origin} critiques"] = count
    if recipe.critiques.control is not None:
        summary["control"] = recipe.critiques.control


def _critiques(recipe: Recipe, round: int, frozen: Path) -> list[CritiquedCompletion]:
    rows: list[CritiquedCompletion] = read_records(frozen / "critiques.parquet", CritiquedCompletion)
    return [row for row in rows if row.round >= _oldest(recipe, round)]


def _answers(pairs: pa.Table) -> Iterator[frozenset[str]]:
    """The two answers of each pair, whichever is the better one."""
    if len(pairs):
        both = (pairs.column(name).to_pylist() for name in ("chosen_id", "rejected_id"))
        yield from map(frozenset, zip(*both, strict=True))


def _oldest(recipe: Recipe, round: int) -> int:
    """The first round whose feedback may still train the policy."""
    rounds = recipe.pairing.feedback_rounds
    return 0 if rounds is None else round - rounds
