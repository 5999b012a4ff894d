"""Step 1: freeze and validate the feedback so far.

    store  ->  feedback.parquet  pairs.parquet  labels.parquet  demonstrations.parquet  judge_pairs.parquet
               judge_prompts.parquet  prompts.parquet  held_out.parquet  validation.json  state.json

Everything a round reads of the store is in this folder, so the round can be made again from it, whatever is said in
the meantime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.collector import collector_paused
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.validation import ValidationReport, validate
from rlhf_loop.files import write_json
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import PreferencePair, Prompt, write_records
from rlhf_loop.rows.pairing import pairs_from_feedback
from rlhf_loop.rows.training_rows import demonstrations, labels_from_feedback

MANY = 0.5  # of all completions: to read more than this share by their ids takes longer than to read all there are


@collector_paused()
def snapshot(store: Store, recipe: Recipe, round: int, folder: Path, promoted: str) -> ValidationReport:
    """Writes the folder; rows that fail validation go to the store's quarantine. `promoted`: the policy that the round
    starts from.

    Feedback of this round and later is left out, so that a round that is made again sees what it saw.
    Raises `UserError` when a round of learning has too few pairs, with the number needed, and where no prompts are
    held out.
    """
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    held_out = held_out_prompts(list(prompts.values()), recipe)
    if not held_out:
        wanted = recipe.evaluation.split
        raise UserError(
            f"there are no held-out prompts to evaluate on: none of the {len(prompts)} prompts is of the split "
            f"`{wanted}` (evaluation.split). Give a file of them in `prompts.{wanted}`, raise `prompts.test_fraction` "
            "where prompts come from imported feedback, or import feedback on more groups of prompts"
        )
    feedback = [record for record in store.feedback() if record.round < max(round, 1)]
    about = {c for record in feedback for c in _completion_ids(record)}
    ids = about if len(about) < MANY * store.completion_count() else None
    completions = {c.id: c for c in store.completions(ids=ids) if c.id in about} if about else {}
    report = validate(feedback, completions, prompts, recipe.feedback.validation)
    store.quarantine_feedback([(record, reason, round) for record, reason in report.quarantined])
    preferences = [record for record in report.usable if record.kind == "preference"]
    pairs, dropped = pairs_from_feedback(preferences, completions, prompts, round)
    by_split: dict[str, list[PreferencePair]] = {"train": [], "judge": []}
    unused: Counter[str] = Counter()
    for pair in pairs:
        split = prompts[pair.prompt_id].split
        if split in by_split:
            by_split[split].append(pair)
        else:
            unused[split] += 1
    needed = recipe.feedback.validation.min_pairs - len(by_split["train"])
    from_pairs = recipe.reward is not None or ALGORITHMS[recipe.update.algorithm].consumes == "pairs"
    if round and from_pairs and needed > 0:
        raise UserError(
            f"round {round}: {len(by_split['train'])} usable pairs are too few for a meaningful update; {needed} more "
            f"are needed (feedback.validation.min_pairs). Of {len(feedback)} pieces of feedback "
            f"{len(report.quarantined)} were set aside: `rlhf-loop feedback check` says why. Set `feedback.annotator` "
            "or `feedback.imports` in the recipe, or answer the open questions (`rlhf-loop feedback export --format "
            "questions`); where neither the update nor the reward model learns from pairs, set min_pairs to 0"
        )
    training = {prompt.id: prompt for prompt in prompts.values() if prompt.split == "train"}
    sound = [record for record in [*report.usable, *report.set_aside] if record.prompt_id in training]
    settings = recipe.feedback
    labels, unlabelled = labels_from_feedback(
        sound, completions, training, settings.validation.contradictions, settings.implicit
    )
    write_records(folder / "feedback.parquet", report.usable)
    write_records(folder / "pairs.parquet", by_split["train"])
    write_records(folder / "labels.parquet", labels)
    write_records(folder / "demonstrations.parquet", demonstrations(sound, completions, training))
    write_records(folder / "judge_pairs.parquet", by_split["judge"])
    write_records(folder / "judge_prompts.parquet", _of_split(list(prompts.values()), "judge"))
    write_records(folder / "prompts.parquet", _of_split(list(prompts.values()), "train"))
    write_records(folder / "held_out.parquet", held_out)
    write_json(
        folder / "validation.json",
        {
            **report.to_dict(),
            "pairs": {"train": len(by_split["train"]), "judge": len(by_split["judge"]), **unused},
            "no_pair": dict(dropped),
            "labels": {"up": sum(row.label for row in labels), "down": sum(not row.label for row in labels)},
            "no_label": dict(unlabelled),
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


def _completion_ids(record: object) -> list[str]:
    names = ("completion_id", "a_id", "b_id")
    return [value for name in names if (value := getattr(record, name, None)) is not None]
