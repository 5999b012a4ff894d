"""Step 1: freeze and validate the feedback so far.

    store  ->  feedback.parquet  pairs.parquet  labels.parquet  demonstrations.parquet  judge_pairs.parquet
               judge_prompts.parquet  prompts.parquet  held_out.parquet  validation.json  state.json
               beside.parquet where something was said that is not usable
               and critiques.parquet where the recipe has `critiques`, checks.parquet where these have `checks`
               and borrowed_*.parquet where it has `feedback.from` (see feedback/borrowed.py)

Everything a round reads of the store is in this folder, so the round can be made again from it, whatever is said in
the meantime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.borrowed import Source, borrow
from rlhf_loop.feedback.collector import collector_paused
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import about
from rlhf_loop.feedback.validation import limits_of, validate
from rlhf_loop.feedback.validation_report import ValidationReport
from rlhf_loop.files import write_json
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import write_records
from rlhf_loop.records import Check, Completion, CritiquedCompletion, Feedback, PreferencePair, Prompt
from rlhf_loop.rows.checks import checks_of, with_rules
from rlhf_loop.rows.checks import counts_of as counts_of_checks
from rlhf_loop.rows.critiqued import counts_of, critiqued_completions, shuffled
from rlhf_loop.rows.demonstrations import demonstrations
from rlhf_loop.rows.labels import labels_from_feedback
from rlhf_loop.rows.next_messages import counts_of as counts_of_next_messages
from rlhf_loop.rows.next_messages import next_messages
from rlhf_loop.rows.pairs import pairs_from_feedback

MANY = 0.5  # of all completions: to read more than this share by their ids takes longer than to read all there are


@collector_paused()
def snapshot(
    store: Store, recipe: Recipe, round: int, folder: Path, promoted: str, sources: Sequence[Source] = ()
) -> ValidationReport:
    """Writes the folder; rows that fail validation go to the store's quarantine. `promoted`: the policy that the round
    starts from. `sources`: other projects whose feedback is learned from too.

    Feedback of this round and later is left out, so that a round that is made again sees what it saw; of the sources'
    it sees what there is then.
    Raises `UserError` when a round of learning has too few pairs, with the number needed, and where no prompts are
    held out.
    """
    everywhere = store.prompts()
    held_out = held_out_prompts(everywhere, recipe)
    if not held_out:
        raise _nothing_held_out(len(everywhere), recipe.evaluation.split)
    feedback, completions = _said_before(store, max(round, 1))
    borrowed = borrow(sources, store)
    prompts = {prompt.id: prompt for prompt in everywhere} | borrowed.prompts
    completions |= {answer.id: answer for answer in store.completions(ids=borrowed.own_answers)} | borrowed.completions
    report = validate([*feedback, *borrowed.feedback], completions, prompts, recipe.feedback.validation)
    of_others = {record.id for record in borrowed.feedback}
    store.quarantine_feedback(
        [(record, why, round) for record, why in report.quarantined if record.id not in of_others]
    )
    preferences = [record for record in report.usable if record.kind == "preference"]
    pairs, no_pair = pairs_from_feedback(preferences, completions, prompts, round)
    by_split = _by_split(pairs, prompts)
    train, judge = by_split.pop("train"), by_split.pop("judge")
    if round and learns_from_pairs(recipe):
        _refuse_too_few(len(train), recipe, round, report)
    training = {prompt.id: prompt for prompt in prompts.values() if prompt.split == "train"}
    sound = [record for record in [*report.usable, *report.set_aside] if record.prompt_id in training]
    settings = recipe.feedback
    labels, no_label = labels_from_feedback(
        sound, completions, training, settings.validation.contradictions, settings.implicit
    )
    write_records(folder / "feedback.parquet", report.usable)
    if beside := _beside(feedback, report.usable):
        write_records(folder / "beside.parquet", beside)
    write_records(folder / "pairs.parquet", train)
    write_records(folder / "labels.parquet", labels)
    write_records(folder / "demonstrations.parquet", demonstrations(sound, completions, training))
    write_records(folder / "judge_pairs.parquet", judge)
    write_records(folder / "judge_prompts.parquet", _of_split(everywhere, "judge"))
    write_records(folder / "held_out.parquet", held_out)
    if sources:
        borrowed.write(folder)
    said_next = _next_messages(store, recipe, everywhere)
    critiques, checks = _critiques(recipe, folder, sound, completions, training, said_next, of_others)
    write_records(folder / "prompts.parquet", with_rules(_of_split(everywhere, "train"), checks))
    unused = {split: len(of_split) for split, of_split in by_split.items()}
    write_json(
        folder / "validation.json",
        {
            **report.to_dict(),
            "pairs": {"train": len(train), "judge": len(judge), **unused},
            "no_pair": dict(no_pair),
            "labels": {"up": sum(row.label for row in labels), "down": sum(not row.label for row in labels)},
            "no_label": dict(no_label),
            **critiques,
            **({"borrowed": borrowed.counts} if sources else {}),
        },
    )
    newest = feedback[-1].id if feedback else None
    write_json(folder / "state.json", {"promoted": promoted, "newest_feedback": newest})
    return report


def held_out_prompts(prompts: Sequence[Prompt], recipe: Recipe) -> list[Prompt]:
    """The prompts that policies are evaluated on, at most `evaluation.max_prompts`."""
    return _of_split(prompts, recipe.evaluation.split)[: recipe.evaluation.max_prompts]


def _of_split(prompts: Sequence[Prompt], split: str) -> list[Prompt]:
    return sorted((p for p in prompts if p.split == split), key=lambda p: (p.source, p.id))


def _nothing_held_out(prompts: int, wanted: str) -> UserError:
    return UserError(
        f"there are no held-out prompts to evaluate on: none of the {prompts} prompts is of the split "
        f"`{wanted}` (evaluation.split). Give a file of them in `prompts.{wanted}`, raise `prompts.test_fraction` "
        "where prompts come from imported feedback, or import feedback on more groups of prompts"
    )


def _said_before(store: Store, round: int) -> tuple[list[Feedback], dict[str, Completion]]:
    """The feedback of the rounds before this one, and the answers that it is about."""
    feedback = [record for record in store.feedback() if record.round < round]
    named = {id for record in feedback for id in about(record)}
    if not named:
        return feedback, {}
    ids = named if len(named) < MANY * store.completion_count() else None
    return feedback, {c.id: c for c in store.completions(ids=ids) if c.id in named}


def _beside(feedback: Sequence[Feedback], usable: Sequence[Feedback]) -> list[Feedback]:
    """What was said and trains nothing, as it was said: quarantined, set aside, or too vague. A report counts
    complaints in it too."""
    kept = {record.id: record.comment for record in usable}
    return [record for record in feedback if record.id not in kept or kept[record.id] != record.comment]


def _critiques(
    recipe: Recipe,
    folder: Path,
    sound: Sequence[Feedback],
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    said_next: tuple[list[CritiquedCompletion], Counter[str]] | None,
    of_others: Set[str],
) -> tuple[dict[str, Any], list[Check]]:
    """Writes what is learned from critiques, where the recipe does, and the checks that are made of them; gives its
    part of the validation report, and the checks.

    `said_next`: what users said next, where the recipe learns from that: rows beside those of critiques, counted apart.
    `of_others`: ids of borrowed feedback, of which no checks are made.
    """
    settings = recipe.critiques
    if settings is None:
        return {}, []
    limits = limits_of(recipe.feedback.validation, settings.kinds, recipe.policy.system_prompt)
    rows, left_out = critiqued_completions(sound, completions, prompts, limits)
    counts, said = counts_of(rows, left_out), rows
    found: dict[str, Any] = {}
    if said_next is not None:
        rows = [*rows, *said_next[0]]
        found["next_messages"] = counts_of_next_messages(*said_next)
    if settings.control == "shuffled":
        rows = shuffled(rows, recipe.seed)
    write_records(folder / "critiques.parquet", rows)
    moved = sum(row.said_of is not None for row in rows)
    found["critiques"] = {**counts, "control": settings.control, "moved_to_another_answer": moved}
    if settings.checks is None:
        return found, []
    # of what was said as it was said: a control moves what is learned, not what is measured
    judged = recipe.reward is not None or settings.checks.judge is not None
    here = [row for row in said if of_others.isdisjoint(row.feedback_ids)] if of_others else said
    checks, no_check = checks_of(here, settings.checks.max_checks, judged)
    write_records(folder / "checks.parquet", checks)
    return {**found, "checks": counts_of_checks(checks, no_check)}, checks


def _next_messages(
    store: Store, recipe: Recipe, prompts: Sequence[Prompt]
) -> tuple[list[CritiquedCompletion], Counter[str]] | None:
    """What users said next after answers, where the recipe learns from it, with counts of what is left out."""
    if recipe.critiques is None or recipe.critiques.next_message is None:
        return None

    limits = limits_of(recipe.feedback.validation, recipe.critiques.kinds, recipe.policy.system_prompt)
    return next_messages(prompts, lambda ids: store.completions(prompt_ids=ids), recipe.critiques.next_message, limits)


def _by_split(pairs: Sequence[PreferencePair], prompts: Mapping[str, Prompt]) -> dict[str, list[PreferencePair]]:
    """The pairs by the split of their prompt; those of train and judge, which something is trained on, come first."""
    by_split: dict[str, list[PreferencePair]] = {"train": [], "judge": []}
    for pair in pairs:
        by_split.setdefault(prompts[pair.prompt_id].split, []).append(pair)
    return by_split


def learns_from_pairs(recipe: Recipe) -> bool:
    """Whether a round needs pairs: for its reward model, or for its update."""
    return recipe.reward is not None or ALGORITHMS[recipe.update.algorithm].consumes == "pairs"


def _refuse_too_few(pairs: int, recipe: Recipe, round: int, report: ValidationReport) -> None:
    missing = recipe.feedback.validation.min_pairs - pairs
    if missing > 0:
        raise UserError(
            f"round {round}: {pairs} usable pairs are too few for a meaningful update; {missing} more "
            f"are needed (feedback.validation.min_pairs). Of {report.total} pieces of feedback "
            f"{len(report.quarantined)} were set aside: `rlhf-loop feedback check` says why. Set `feedback.annotator` "
            "or `feedback.imports` in the recipe, or answer the open questions (`rlhf-loop feedback export --format "
            "questions`); where neither the update nor the reward model learns from pairs, set min_pairs to 0"
        )
