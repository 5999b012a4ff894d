"""PPO as the update of a round. Consumes prompts and asks the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_loop.recipe import Generation
from rlhf_loop.records import Prompt
from rlhf_loop.updates.online import train_online
from rlhf_loop.updates.ppo.config import PPOConfig
from rlhf_loop.updates.ppo.critic import is_critic
from rlhf_loop.updates.ppo.trainer import PPOTrainer
from rlhf_loop.updates.reward_functions import RewardFunction
from rlhf_loop.updates.train_and_save import Training


def update(
    rows: Sequence[Prompt], training: Training, *, reward: RewardFunction, generation: Generation
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`. The critic is made anew in each round and not kept."""
    return train_online(
        PPOTrainer,
        PPOConfig,
        rows,
        training,
        reward=reward,
        generation=generation,
        of_policy=lambda name: not is_critic(name),
    )
