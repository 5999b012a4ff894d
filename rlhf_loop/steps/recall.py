"""Before step 8: what the run has written and heard so far, for a policy that is to read of it.

store  snapshot/  ->  to_revise.parquet  exemplars.parquet  recall.json

Answers of rounds before this one alone. An answer's standing is the share of the answers that its reward model scored
with it, mostly those of its round, which it scores above: scores of two reward models cannot be compared.

No exemplar answers a prompt that is held out, or nearly the same as one that is. What was deleted is in neither the
store nor, after a deletion, these files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_loop.feedback.quality import near_duplicates
from rlhf_loop.feedback.store.reading import ScoredAnswer
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import about
from rlhf_loop.feedback.validation import limits_of
from rlhf_loop.files import write_json
from rlhf_loop.recipe import Critiques, Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import HELD_OUT, Completion, CritiquedCompletion, Feedback, Prompt, Recalled
from rlhf_loop.rows.critiqued import critiqued_completions
from rlhf_loop.rows.drawn import prompts_of_round
from rlhf_loop.strategies import STRATEGIES

_LOOKED_AT = 8  # answers of a prompt, the best first, among which one is sought that may be revised


def recall(store: Store, recipe: Recipe, round: int, frozen: Path, folder: Path) -> None:
    """Writes the folder; `frozen`: the round's snapshot, whose feedback holds the critiques."""
    strategy = STRATEGIES[recipe.generation.strategy]
    prompts: list[Prompt] = read_records(frozen / "prompts.parquet", Prompt)
    scored = store.scored_answers(before=round)
    standing = standings(scored)
    counts: Counter[str] = Counter()
    if strategy.revises:
        first = frozen / "critiques.parquet" if recipe.critiques is not None and recipe.critiques.need_fresh else None
        asked = prompts_of_round(
            prompts,
            recipe.generation.prompts_per_round,
            seed=recipe.seed,
            round=round,
            critiques=first,
            feedback_rounds=recipe.pairing.feedback_rounds,
        )
        said = critiques(store, recipe, frozen, asked)
        rows = _to_revise(store, recipe, round, asked, scored, standing, said, counts)
        write_records(folder / "to_revise.parquet", rows)
    if strategy.exemplars:
        held_out = [prompt for prompt in store.prompts() if prompt.split in HELD_OUT]
        rows = _exemplars(store, recipe, prompts, held_out, scored, standing, counts)
        write_records(folder / "exemplars.parquet", rows)
    write_json(folder / "recall.json", dict(counts))


def standings(scored: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Completion id -> its standing, 0..1; equal scores share the middle of their places."""
    by_model: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for one in scored:
        by_model[one.reward_model].append(one)
    found: dict[str, float] = {}
    for group in by_model.values():
        values = np.array([one.value for one in group])
        ordered = np.sort(values)
        below = np.searchsorted(ordered, values, "left")
        equal = np.searchsorted(ordered, values, "right") - below - 1
        share = (below + equal / 2) / max(len(group) - 1, 1)
        found.update(zip((one.completion_id for one in group), share.tolist(), strict=True))
    return found


def critiques(
    store: Store, recipe: Recipe, frozen: Path, prompts: Sequence[Prompt]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Completion id -> what was last said to be wrong with it, and the ids of the feedback that says so; of the answers
    to these prompts.

    Of the snapshot's critiques where the recipe learns from any (with `critiques.control: shuffled` they are those of
    other answers), else of its feedback, by the same rules.
    """
    asked = {prompt.id: prompt for prompt in prompts}
    rows: list[CritiquedCompletion]
    if (frozen / "critiques.parquet").exists():
        rows = [
            row for row in read_records(frozen / "critiques.parquet", CritiquedCompletion) if row.prompt_id in asked
        ]
    else:
        given: list[Feedback] = [
            record
            for record in read_records(frozen / "feedback.parquet", Feedback)
            if record.comment and record.prompt_id in asked
        ]
        named = {id for record in given for id in about(record)}
        answers = {c.id: c for c in store.completions(ids=named)}
        # not what was borrowed, whose answers are in the snapshot alone
        given = [record for record in given if answers.keys() >= set(about(record))]
        kinds = (recipe.critiques or Critiques()).kinds
        limits = limits_of(recipe.feedback.validation, kinds, recipe.policy.system_prompt)
        rows, _ = critiqued_completions(given, answers, asked, limits)
    faults = [row for row in rows if row.critique and row.label is not True and row.origin != "implicit"]
    return {row.completion_id: (row.critique, row.feedback_ids) for row in faults}


def _to_revise(
    store: Store,
    recipe: Recipe,
    round: int,
    asked: Sequence[Prompt],
    scored: Sequence[ScoredAnswer],
    standing: Mapping[str, float],
    said: Mapping[str, tuple[str, tuple[str, ...]]],
    counts: Counter[str],
) -> list[Recalled]:
    """One answer a prompt: the best-scored one with a critique, or where none has one, the best-scored."""
    ids = {prompt.id for prompt in asked}
    of_prompt: dict[str, set[str]] = defaultdict(set)
    for one in scored:
        if one.prompt_id in ids:
            of_prompt[one.prompt_id].add(one.completion_id)
    criticised = [c for c in store.completions(ids=said) if c.prompt_id in ids and c.round < round]
    for completion in criticised:
        of_prompt[completion.prompt_id].add(completion.id)
    best = {
        prompt_id: sorted(answers, key=lambda id: (id not in said, -standing.get(id, -1.0), id))[:_LOOKED_AT]
        for prompt_id, answers in of_prompt.items()
    }
    records = {c.id: c for c in store.completions(ids=[id for answers in best.values() for id in answers])}
    deepest = recipe.generation.refine.max_depth
    lines = _lines(store, records.values(), deepest)
    rows = []
    for prompt in asked:
        usable = [
            records[id] for id in best.get(prompt.id, ()) if records[id].text.strip() and len(lines[id]) < deepest
        ]
        too_deep = sum(len(lines[id]) >= deepest for id in best.get(prompt.id, ()))
        counts["answers revised as often as may be"] += too_deep
        if not usable:
            counts["prompts without an answer to revise"] += 1
            continue
        chosen = usable[0]
        comment, feedback_ids = said.get(chosen.id, (None, ()))
        counts["answers to revise by a critique" if comment else "answers to revise without one"] += 1
        rows.append(
            Recalled(
                prompt_id=prompt.id,
                completion_id=chosen.id,
                text=chosen.text,
                standing=standing.get(chosen.id),
                critique=comment,
                feedback_ids=feedback_ids,
                before=tuple(lines[chosen.id]),
            )
        )
    return rows


def _lines(store: Store, completions: Iterable[Completion], deepest: int) -> dict[str, list[str]]:
    """Completion id -> the texts that it is a revision of, the latest first, at most `deepest`.

    A record that names itself among its own ancestors, which only an import could hold, ends there.
    """
    lines: dict[str, list[str]] = {}
    above = {c.id: c.parent for c in completions}
    seen = {id: {id} for id in above}
    for id in above:
        lines[id] = []
    for _ in range(deepest):
        wanted = {parent for id, parent in above.items() if parent is not None and parent not in seen[id]}
        found = {c.id: c for c in store.completions(ids=wanted)} if wanted else {}
        for id, parent in above.items():
            record = found.get(parent) if parent is not None and parent not in seen[id] else None
            if record is not None:
                lines[id].append(record.text)
                seen[id].add(record.id)
            above[id] = None if record is None else record.parent
    return lines


def _exemplars(
    store: Store,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    scored: Sequence[ScoredAnswer],
    standing: Mapping[str, float],
    counts: Counter[str],
) -> list[Recalled]:
    """The best-scored answer to each training prompt that may be shown beside another prompt."""
    near, barred = _near(prompts, held_out)
    counts["prompts nearly the same as one held out"] = len(barred)
    training = {prompt.id for prompt in prompts}
    best: dict[str, str] = {}
    for one in scored:
        if one.prompt_id not in training or one.prompt_id in barred:
            continue
        if standing[one.completion_id] < recipe.generation.exemplars.min_standing:
            counts["answers that do not stand high enough"] += 1
            continue
        other = best.get(one.prompt_id)
        if other is None or standing[one.completion_id] >= standing[other]:  # of equals the later one
            best[one.prompt_id] = one.completion_id
    records = {c.id: c for c in store.completions(ids=best.values())}
    rows = [
        Recalled(
            prompt_id=prompt_id,
            completion_id=id,
            text=records[id].text,
            standing=standing[id],
            near=near.get(prompt_id, ()),
        )
        for prompt_id, id in best.items()
        if records[id].text.strip()
    ]
    counts["exemplars"] = len(rows)
    counts["best answers that are empty"] = len(best) - len(rows)
    return rows


def _near(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Training prompt id -> the others that are nearly the same; and those nearly the same as a held-out one."""
    every = [*prompts, *held_out]
    groups = near_duplicates.clusters(near_duplicates.signatures(prompt.asked for prompt in every)).groups()
    near: dict[str, tuple[str, ...]] = {}
    barred: set[str] = set()
    for rows in groups:
        ids = [every[row].id for row in rows if row < len(prompts)]
        near |= {id: tuple(other for other in ids if other != id) for id in ids}
        if len(ids) < len(rows):
            barred |= set(ids)
    return near, barred
