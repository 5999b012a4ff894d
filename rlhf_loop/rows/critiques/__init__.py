"""Pairs and demonstrations made of critiques: one file a method (`rlhf_loop/critique_methods.py`).

Each has a function

    f(settings, material) -> (pairs or demonstrations, counts of what gave none, by reason)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name

from rlhf_loop.critique_methods import METHODS
from rlhf_loop.records import Completion, CritiquedCompletion, Demonstration, PreferencePair, Prompt
from rlhf_loop.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a round has when its pairs are made, all of the training split."""

    critiques: Sequence[CritiquedCompletion]  # also verdicts without words, and edits
    prompts: Sequence[Prompt]
    candidates: Sequence[Completion] = ()  # that wait for this round
    scores: Mapping[str, float] = field(default_factory=dict)  # completion id -> this round's reward model's
    reward_model: str | None = None  # whose scores they are
    round: int
    seed: int = 0


def pairs_of(name: str, settings: Settings, material: Material) -> tuple[list[PreferencePair], Counter[str]]:
    """What the method `name` makes of the material."""
    pairs: tuple[list[PreferencePair], Counter[str]] = resolve_name(METHODS[name].function)(settings, material)
    return pairs


def demonstrations_of(name: str, settings: Settings, material: Material) -> tuple[list[Demonstration], Counter[str]]:
    """The same of a method that gives texts to imitate."""
    made: tuple[list[Demonstration], Counter[str]] = resolve_name(METHODS[name].function)(settings, material)
    return made
