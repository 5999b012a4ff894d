"""Whether what is added under an id that is taken says the same as what is there, and the error where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.records import Artifact, Completion, Feedback, Prompt, Score, to_dict


def without_source(prompt: Prompt) -> Prompt:
    """A prompt is the same whatever file it came from."""
    return replace(prompt, source="")


def without_token_ids(completion: Completion) -> Completion:
    """A text is the same whether or not it is known how it was sampled."""
    return replace(completion, token_ids=None)


def without_file(feedback: Feedback) -> Feedback:
    """Without what depends on the name of the file that it was imported from."""
    stands_for_file = feedback.annotator.id.startswith("import:")
    annotator = replace(feedback.annotator, id="import") if stands_for_file else feedback.annotator
    return replace(feedback, source="", annotator=annotator)


def made_from(artifact: Artifact, deleted: Iterable[str]) -> Artifact:
    """What must not change of an artifact: what it was made from, as far as that is still there."""
    learned = tuple(sorted(set(artifact.trained_on).difference(deleted)))
    return replace(artifact, path="", metrics={}, promoted=False, trained_on=learned)


def check_score(score: Score) -> None:
    """Raises `UserError` for a score that is no number."""
    if not math.isfinite(score.value):
        raise UserError(
            f"reward model {score.reward_model} gives completion {score.completion_id} the score "
            f"{score.value}; check the reward model, training may have diverged (lower its learning rate)"
        )


def check_same_score(old: Score, new: Score) -> None:
    """Raises `UserError` where two scores differ by more than rounding."""
    if not math.isclose(old.value, new.value, rel_tol=0.02, abs_tol=0.02):
        raise UserError(
            f"reward model {new.reward_model} gave completion {new.completion_id} the score {old.value:g} before and "
            f"{new.value:g} now; a reward model that has changed needs an id of its own"
        )


def conflict(what: str, id: str, old: Any, new: Any) -> UserError:
    """The error: the id is taken, and by what else."""
    before, after = to_dict(old), to_dict(new)
    differ = [name for name in after if before.get(name) != after[name]]
    first = differ[0] if differ else "kind"
    if isinstance(new, Prompt) and differ in (["split"], ["split", "source"]):
        return UserError(
            f"prompt {id} is in the split {old.split} and would also be in {new.split}: what is learned from would be "
            "evaluated on. Take it out of one of the files, or use another store for another split"
        )
    return UserError(
        f"{what}: the id {id} is already taken by a record whose {', '.join(differ)} differ ({first} is "
        f"{str(before.get(first))[:80]!r}, now {str(after.get(first))[:80]!r}). Records are never overwritten: give "
        "the new one an id of its own, and for feedback set `supersedes` to the old id"
    )
