"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740), through TRL's RLOOTrainer.

Consumes prompts and asks the reward model. Each prompt gets several answers (`num_generations`); an answer's baseline
is the mean reward of the others, and the KL to the reference is part of the reward (`beta`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from rlhf_loop.recipe import Generation
from rlhf_loop.records import Prompt
from rlhf_loop.updates.online import train_online
from rlhf_loop.updates.reward_functions import RewardFunction, watched
from rlhf_loop.updates.rollouts import Rollouts
from rlhf_loop.updates.terms.trainer import WithTerms
from rlhf_loop.updates.train_and_save import Training


def update(
    rows: Sequence[Prompt], training: Training, *, reward: RewardFunction, generation: Generation
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`."""
    return train_online(_Trainer, RLOOConfig, rows, training, reward=watched(reward), generation=generation)


class _Trainer(WithTerms, Rollouts, RLOOTrainer):  # type: ignore[misc]
    """TRL's trainer with our sampler."""

    _name = "RLOO"
