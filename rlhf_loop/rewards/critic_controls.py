"""How good a critic is with its own critiques, with empty ones and with another answer's.

Where the three are alike, the critic's accuracy does not come from what it writes: it may read all in the answer, or
gain by the length of its input alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_loop.models.distributed import sharded_map
from rlhf_loop.records import PreferencePair, Prompt
from rlhf_loop.rewards import evaluate_reward
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.critic import CriticReward
from rlhf_loop.rewards.texts import Text, texts_of_pairs


def evaluate(
    reward: CriticReward, pairs: Sequence[PreferencePair], seed: int = 0, prompts: Sequence[Prompt] = ()
) -> dict[str, Any] | None:
    """What `evaluate_reward` gives, with the critic's own critiques, and under `empty_critique` and `shuffled_critique`
    its accuracies with the others. None when there are no pairs."""
    if not pairs:
        return None
    measured = {
        name: evaluate_reward(Given(reward, critiques), pairs, seed=seed, prompts=prompts)
        for name, critiques in controls(reward, pairs, seed).items()
    }
    result = dict(measured["own"] or {})
    for name in ("empty", "shuffled"):
        of_control = measured[name] or {}
        result[f"{name}_critique"] = {key: of_control.get(key) for key in ("accuracy", "length_balanced_accuracy")}
    return result


def controls(reward: CriticReward, pairs: Sequence[PreferencePair], seed: int) -> dict[str, dict[Text, list[int]]]:
    """`own`, `empty` and `shuffled`: for each text of `pairs` a critique in token ids. Shuffled: the critic's own of
    another text, drawn by `seed`."""
    texts, _ = texts_of_pairs(pairs)
    own = sharded_map(reward.write, texts)
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    shuffled = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return {
        "own": dict(zip(texts, own, strict=True)),
        "empty": dict.fromkeys(texts, reward.asked.empty()),
        "shuffled": {text: own[shuffled[number]] for number, text in enumerate(texts)},
    }


class Given(Reward):
    """A critic that reads critiques which it is given."""

    def __init__(self, reward: CriticReward, critiques: Mapping[Text, Sequence[int]]):
        super().__init__(reward.id, reward.name)
        self.reward = reward
        self.critiques = critiques

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The reward of each text at the end of the critique that it is given."""
        return list(self.reward.having_read(texts, [self.critiques[text] for text in texts]))
