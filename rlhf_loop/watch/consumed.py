"""What the next round can learn from: which pieces of feedback its update and its reward model train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_loop.algorithms import Consumes
from rlhf_loop.feedback.validation import limits_of
from rlhf_loop.feedback.validation_report import ValidationReport
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import (
    Completion,
    CritiquedCompletion,
    Demonstration,
    Feedback,
    LabelledCompletion,
    PreferencePair,
    Prompt,
)
from rlhf_loop.reward_spec import TrainedSpec, load_spec
from rlhf_loop.rows.critiqued import critiqued_completions
from rlhf_loop.rows.demonstrations import demonstrations
from rlhf_loop.rows.labels import labels_from_feedback
from rlhf_loop.rows.pairs import pairs_from_feedback

REWARD_MODEL = "the reward model"
CRITIQUES = "learning from critiques"

Eats = Consumes | Literal["critiques"]

_NAMES: dict[Eats, str] = {
    "pairs": "pairs",
    "labels": "thumbs",
    "demonstrations": "edits",
    "critiques": "critiques, comments, thumbs and edits",
}
_KINDS: dict[Eats, set[str]] = {
    "pairs": {"preference", "both_bad"},  # `both_bad` may be a word of somebody's comment
    "labels": {"thumb", "both_bad", "implicit"},
    "demonstrations": {"edit"},
    "critiques": {"preference", "both_bad", "thumb", "rating", "critique", "edit"},
}
"""What a consumer may be able to use, before anything is looked at closely: see `triggers.arrivals`."""


def consumers(recipe: Recipe) -> dict[str, Eats]:
    """What learns from feedback in a round, and what it consumes of it: the update by its algorithm's name, and
    `REWARD_MODEL` where one is trained. Empty where nothing does (rewards that are not trained, no update)."""
    found: dict[str, Eats] = {}
    update = recipe.update.consumes
    if update in ("labels", "demonstrations") or (update == "pairs" and "feedback" in recipe.pairing.sources):
        found[recipe.update.algorithm] = update
    components = recipe.reward.weighted() if recipe.reward is not None else []
    if any(isinstance(load_spec(one.model), TrainedSpec) for one in components):
        found[REWARD_MODEL] = "pairs"
    trains = ("pairs", "demonstrations", "term")
    if recipe.critiques is not None and any(map(recipe.critiques.gives, trains)):
        found[CRITIQUES] = "critiques"
    return found


def possible_kinds(who: Mapping[str, Eats]) -> set[str]:
    """Kinds of feedback of which at least one of `who` may be able to use a piece."""
    return {kind for consumes in who.values() for kind in _KINDS[consumes]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumed:
    """What the next round would train on."""

    ids: set[str]  # of the pieces of feedback
    starved: dict[str, Eats]  # those that would have nothing to train on, and what they consume


def consumed(
    recipe: Recipe,
    who: Mapping[str, Eats],
    next_round: int,
    report: ValidationReport,
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
) -> Consumed:
    """What each of `who` would find in the next round, made of the feedback as the round itself makes it."""
    training = {prompt.id: prompt for prompt in prompts.values() if prompt.split == "train"}
    sound = [record for record in [*report.usable, *report.set_aside] if record.prompt_id in training]
    settings, rounds = recipe.feedback, recipe.pairing.feedback_rounds
    oldest = 0 if rounds is None else next_round - rounds
    ids: set[str] = set()
    starved: dict[str, Eats] = {}
    for name, consumes in who.items():
        rows: list[PreferencePair] | list[LabelledCompletion] | list[Demonstration] | list[CritiquedCompletion]
        if consumes == "pairs":
            decided = [r for r in report.usable if r.kind == "preference" and r.prompt_id in training]
            rows = pairs_from_feedback(decided, completions, training)[0]
        elif consumes == "labels":
            rows = labels_from_feedback(
                sound, completions, training, settings.validation.contradictions, settings.implicit
            )[0]
        elif consumes == "critiques":
            rows = _critiques(recipe, sound, completions, training)
        else:
            rows = demonstrations(sound, completions, training)
        if name != REWARD_MODEL:  # which learns from all there is
            rows = [row for row in rows if row.round >= oldest or not row.feedback_ids]  # type: ignore[assignment]
        ids |= {id for row in rows for id in row.feedback_ids}
        alone = consumes not in ("pairs", "critiques") or name == REWARD_MODEL or "reward" not in recipe.pairing.sources
        if alone and not rows:
            starved[name] = consumes
    return Consumed(ids=ids, starved=starved)


def _critiques(
    recipe: Recipe, sound: Sequence[Feedback], completions: Mapping[str, Completion], prompts: Mapping[str, Prompt]
) -> list[CritiquedCompletion]:
    """Those that a method of the recipe learns from."""
    settings = recipe.critiques
    assert settings is not None
    limits = limits_of(recipe.feedback.validation, settings.kinds, recipe.policy.system_prompt)
    rows, _ = critiqued_completions(sound, completions, prompts, limits)
    return [
        row
        for row in rows
        if (row.revision is not None and "edits" in settings.methods())
        or (row.label is False and settings.need_fresh)
        or (row.critique and (settings.gives("term") or settings.gives("demonstrations")))
    ]


def in_words(who: Mapping[str, Eats]) -> str:
    """`kto can use: it consumes thumbs`."""
    if len(who) == 1:
        ((name, consumes),) = who.items()
        return f"{name} can use: it consumes {_NAMES[consumes]}"
    if len(set(who.values())) == 1:
        return f"{' and '.join(who)} can use: they consume {_NAMES[next(iter(who.values()))]}"
    said = ", ".join(f"{name} consumes {_NAMES[consumes]}" for name, consumes in who.items())
    return f"{' or '.join(who)} can use: {said}"


def hunger(starved: Mapping[str, Eats]) -> list[str]:
    """One line for each that would have nothing to train on."""
    return [f"{name} has nothing to train on: it consumes {_NAMES[what]}" for name, what in starved.items()]
