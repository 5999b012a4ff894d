"""What to change where a plan does not fit, the smallest change first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.plan.case import Case
from rlhf_loop.plan.planning import Plan, plans, recommended
from rlhf_loop.plan.trainer import Trainer, trainer_of
from rlhf_loop.plan.update import critic_of
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.reward_spec import TrainerSpec, with_trainer
from rlhf_loop.settings import apply_override


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """`settings`: what to type behind the recipe; `devices`: GPUs a machine, where that is the change."""

    settings: tuple[str, ...] = ()
    devices: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The changes that make a recipe fit, and its plan with them; without `fits` they are the most that helps."""

    changes: tuple[Change, ...]
    plan: Plan

    @property
    def fits(self) -> bool:
        """Whether it does then."""
        return self.plan.fits


def advice(found: Plan) -> Advice | None:
    """None where the plan fits. Tried are one change at a time, from the smallest on, then several together."""
    if found.fits:
        return None
    taken: list[Change] = []
    plan = found
    for changes in _ladder(found.case):
        best: tuple[Change, Plan] | None = None
        for change in changes:
            alone = _changed(found.case, [change])
            if alone is not None and alone.fits:
                return Advice(changes=(change,), plan=alone)
            together = _changed(found.case, [*taken, change])
            if together is not None and together.fits:
                return _without_needless(found.case, [*taken, change], together)
            if together is not None and together.over < (best[1] if best else plan).over:
                best = (change, together)
        if best is not None:
            taken.append(best[0])
            plan = best[1]
    return Advice(changes=tuple(taken), plan=plan)


def _ladder(case: Case) -> Iterator[list[Change]]:
    """Kinds of changes; within one from little to much. The first ones change no result but by rounding, those below
    take time, the last ones train something else or cost money."""
    update = case.recipe.update
    reward = _trained_rewards(case)
    yield _smaller_batches(case)
    yield [_smallest_batch(one) for spec in reward if (one := trainer_of(spec.kind, spec.trainer)).batch > 1]
    yield _batch_tokens(case)
    if update.algorithm != "none" and not update.trainer_settings().get("gradient_checkpointing"):
        yield [Change(settings=(_of_trainer(case.recipe, "gradient_checkpointing", "true"),))]
    if reward:
        yield [Change(settings=("reward.trainer.gradient_checkpointing=true",))]
    if critic_of(update) == "separate":
        yield [Change(settings=(_of_trainer(case.recipe, "critic", "head"),))]
    if update.algorithm != "none" and update.lora is None:
        settings: tuple[str, ...] = ("update.lora={r: 16, alpha: 32}",)
        if critic_of(update) == "separate" and "critic" in update.trainer_settings():
            settings += (_of_trainer(case.recipe, "critic", "adapter"),)
        yield [Change(settings=settings)]
    if case.hardware.kind == "gpu":
        counts = [2**n for n in range(1, 10) if 2**n > case.hardware.devices]
        yield [Change(devices=count) for count in counts]


def _smaller_batches(case: Case) -> list[Change]:
    """Fewer rows of the update at a time and more times, so that a step has as many as before."""
    found: list[Change] = []
    update = case.recipe.update
    if update.algorithm != "none":
        settings = update.trainer_settings()
        trainer = trainer_of(update.algorithm, settings)
        least = 2 if update.algorithm == "kto" else 1
        batch, times = trainer.batch // 2, 2
        while batch >= least and batch * times == trainer.batch:
            changed = [
                _of_trainer(case.recipe, "per_device_train_batch_size", str(batch)),
                _of_trainer(case.recipe, "gradient_accumulation_steps", str(trainer.accumulation * times)),
            ]
            if settings.get("steps_per_generation"):
                changed.append(
                    _of_trainer(case.recipe, "steps_per_generation", str(int(settings["steps_per_generation"]) * times))
                )
            found.append(Change(settings=tuple(changed)))
            batch, times = batch // 2, times * 2
    return found


def _smallest_batch(trainer: Trainer) -> Change:
    """One prompt of a reward model's training at a time."""
    return Change(
        settings=(
            "reward.trainer.per_device_train_batch_size=1",
            f"reward.trainer.gradient_accumulation_steps={trainer.accumulation * trainer.batch}",
        )
    )


def _batch_tokens(case: Case) -> list[Change]:
    """Fewer answers that are written together."""
    tokens, found = case.recipe.generation.batch_tokens // 2, []
    while tokens >= max(256, case.implied.prompt + case.implied.new):
        found.append(Change(settings=(f"generation.batch_tokens={tokens}",)))
        tokens //= 2
    return found


def _trained_rewards(case: Case) -> list[TrainerSpec]:
    reward = case.recipe.reward
    if reward is None:
        return []
    specs = [case.rewards[one.model][0] for one in reward.weighted()]
    return [with_trainer(spec, reward.trainer) for spec in specs if isinstance(spec, TrainerSpec)]  # type: ignore[misc]


def _of_trainer(recipe: Recipe, name: str, value: str) -> str:
    """A setting of the update's trainer, at the place where the recipe has it."""
    own = recipe.update.trainers.get(recipe.update.algorithm, {})
    place = f"update.trainers.{recipe.update.algorithm}" if name in own else "update.trainer"
    return f"{place}.{name}={value}"


def _changed(case: Case, changes: Sequence[Change]) -> Plan | None:
    """The plan with all of them; None where the recipe may not be so."""
    values: dict[str, Any] = case.recipe.model_dump(mode="json")
    hardware = case.hardware
    try:
        for change in changes:
            for setting in change.settings:
                apply_override(values, setting)
            hardware = replace(hardware, devices=change.devices or hardware.devices)
        recipe = parse(values)
    except (UserError, ValueError):
        return None
    return recommended(plans(replace(case, recipe=recipe, hardware=hardware)))


def _without_needless(case: Case, changes: list[Change], plan: Plan) -> Advice:
    """Leaves out what the later changes made needless."""
    for change in list(changes):
        fewer = [one for one in changes if one is not change]
        without = _changed(case, fewer) if fewer else None
        if without is not None and without.fits:
            changes, plan = fewer, without
    return Advice(changes=tuple(changes), plan=plan)
