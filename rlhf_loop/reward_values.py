"""What a reward function may give: a list with a finite number, or None, for each completion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any


class BadReward(ValueError):
    """What was given instead, in words: `place` is set where it was for one completion, `count` where the number of
    rewards is another, neither where there is no list."""

    def __init__(self, given: str, *, place: int | None = None, count: int | None = None):
        super().__init__(given)
        self.place = place
        self.count = count


def checked_rewards(rewards: Any, count: int, booleans: bool = False) -> list[float | None]:
    """`rewards` as floats, None where there is nothing to say; raises `BadReward` unless they are `count` finite ones.

    `booleans`: True and False are 1 and 0, as TRL's trainers take them; so is what else `float` makes a number of.
    """
    try:
        if isinstance(rewards, (Mapping, Set)):  # in no order, or not the rewards
            raise TypeError
        rewards = list(rewards)
    except TypeError:
        raise BadReward(type(rewards).__name__) from None
    if len(rewards) != count:
        raise BadReward(str(len(rewards)), count=len(rewards))
    checked: list[float | None] = []
    for place, reward in enumerate(rewards):
        try:
            plain = booleans or (isinstance(reward, (int, float)) and not isinstance(reward, bool))
            value = None if reward is None else float(reward) if plain else math.nan
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise BadReward(f"{reward!r}, which is no finite number", place=place)
        checked.append(value)
    return checked
