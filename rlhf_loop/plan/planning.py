"""A plan of a recipe: what each stage takes, which way of sharing a training out fits, and how long a round takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_loop.machine import Dtype
from rlhf_loop.plan.case import Case, Memory
from rlhf_loop.plan.hardware import Hardware
from rlhf_loop.plan.implied import Implied
from rlhf_loop.plan.operations import Time
from rlhf_loop.plan.rewards import trained, training
from rlhf_loop.plan.shape import Shape, shape_of
from rlhf_loop.plan.sharing import CPU, SHARINGS, Sharing
from rlhf_loop.plan.stages import evaluate_memory, generate_memory, score_memory
from rlhf_loop.plan.times import times
from rlhf_loop.plan.update import update_memory
from rlhf_loop.recipe import Recipe, RewardModelJudge
from rlhf_loop.reward_spec import PretrainedSpec, RewardSpec, TrainedSpec, load_spec

USABLE = 0.9
"""Share of a device's memory that a plan may take; the rest is for what allocators leave between pieces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe takes on some hardware, trainings in one way of sharing out."""

    case: Case
    stages: tuple[Memory, ...]
    times: tuple[Time, ...]

    @property
    def room(self) -> int:
        """Bytes of a device that may be taken."""
        return int(USABLE * self.case.hardware.memory)

    @property
    def too_large(self) -> tuple[Memory, ...]:
        """Stages that do not fit."""
        return tuple(stage for stage in self.stages if stage.total > self.room)

    @property
    def fits(self) -> bool:
        """Whether all do."""
        return not self.too_large

    @property
    def over(self) -> int:
        """Bytes that those take beyond the room, together."""
        return sum(stage.total - self.room for stage in self.too_large)

    @property
    def largest(self) -> int:
        """Bytes of the stage that takes the most."""
        return max(stage.total for stage in self.stages)


def plans(case: Case) -> list[Plan]:
    """One for each way of sharing out that the hardware has, in the order of `SHARINGS`."""
    return [plan_of(replace(case, sharing=sharing)) for sharing in _ways(case)]


def _ways(case: Case) -> list[Sharing]:
    """Weights of 4 bits are not shared out (`models/quantised.py`)."""
    whole = case.recipe.policy.quantization is not None
    return [sharing for sharing in possible(case.hardware) if not (whole and sharing.weights)]


def recommended(found: Sequence[Plan]) -> Plan:
    """The first that fits, else the one whose largest stage is the smallest."""
    return next((plan for plan in found if plan.fits), None) or min(found, key=lambda plan: plan.largest)


def plan_of(case: Case) -> Plan:
    """Every stage, in the order of a round."""
    recipe = case.recipe
    judge = recipe.evaluation.judge
    found = [trained(case, judge.model, judge.trainer)] if isinstance(judge, RewardModelJudge) else []
    if recipe.warm_start is not None:
        found.append(update_memory(case, recipe.warm_start.as_update(recipe.update)))
    found += [*training(case), score_memory(case), update_memory(case), evaluate_memory(case), generate_memory(case)]
    stages: dict[str, Memory] = {}
    for memory in found:
        if memory is not None and memory.total > (stages[memory.stage].total if memory.stage in stages else 0):
            stages[memory.stage] = memory
    return Plan(case=case, stages=tuple(stages.values()), times=tuple(times(case)))


def possible(hardware: Hardware) -> list[Sharing]:
    """The ways that there are on it."""
    if hardware.kind == "cpu":
        return [CPU]
    return [
        sharing
        for sharing in SHARINGS
        if sharing.several == (hardware.total > 1) and (hardware.machines > 1 or not sharing.over_machine)
    ]


def case_of(recipe: Recipe, hardware: Hardware, dtype: Dtype, implied: Implied) -> Case:
    """All that plans of a recipe are functions of. Raises `UserError` where a model's configuration is not here."""
    shape = _Shapes(recipe)
    policy = shape(recipe.policy.model)
    folders = [one.model for one in recipe.reward.weighted()] if recipe.reward is not None else []
    if isinstance(recipe.evaluation.judge, RewardModelJudge):
        folders.append(recipe.evaluation.judge.model)
    rewards: dict[Path, tuple[RewardSpec, Shape | None]] = {}
    for folder in folders:
        spec = load_spec(folder)
        its = None  # a function, and a judge behind a server, compute nothing here
        if isinstance(spec, PretrainedSpec):
            its = shape(spec.model, classifier=True)
        elif isinstance(spec, TrainedSpec):
            its = policy if spec.base == "policy" else shape(spec.base)
        rewards[folder] = (spec, its)
    return Case(
        recipe=recipe,
        policy=policy,
        rewards=rewards,
        implied=implied,
        hardware=hardware,
        dtype=dtype,
        sharing=possible(hardware)[0],
    )


class _Shapes:
    """Each model is looked at once."""

    def __init__(self, recipe: Recipe):
        self.trusted = recipe.policy.trust_remote_code
        self.known: dict[tuple[str, bool], Shape] = {}

    def __call__(self, reference: str, classifier: bool = False) -> Shape:
        key = (reference, classifier)
        if key not in self.known:
            self.known[key] = shape_of(reference, trust_remote_code=self.trusted, classifier=classifier)
        return self.known[key]
