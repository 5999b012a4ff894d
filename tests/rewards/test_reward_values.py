from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlhf_loop.reward_values import BadReward, checked_rewards


def test_rewards_are_floats_and_none_stays():
    assert checked_rewards([1, None, 0.5], 3) == [1.0, None, 0.5]
    assert checked_rewards(np.float32([0.5, 2]), 2, booleans=True) == [0.5, 2.0]
    assert checked_rewards([True, False], 2, booleans=True) == [1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, "good", 10**400, True, [1.0]], ids=str)
def test_what_is_no_finite_number_is_refused_with_its_place(bad: Any):
    with pytest.raises(BadReward, match="which is no finite number") as refused:
        checked_rewards([0.5, bad], 2)
    assert refused.value.place == 1


@pytest.mark.parametrize(("given", "said"), [([0.5], "1"), (0.5, "float"), (None, "NoneType"), ({1.0, 2.0}, "set")])
def test_another_number_or_no_list_is_refused(given: Any, said: str):
    with pytest.raises(BadReward) as refused:
        checked_rewards(given, 2)
    assert str(refused.value) == said
    assert refused.value.place is None
    assert refused.value.count == (1 if given == [0.5] else None)
