"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), through TRL's GRPOTrainer.

Consumes prompts and asks the reward model. Each prompt gets several answers (`num_generations`), and an answer's
advantage is how much better than the others of its prompt it is. TRL's default is no KL penalty (`beta: 0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig, GRPOTrainer

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
    return train_online(_Trainer, GRPOConfig, rows, training, reward=watched(reward), generation=generation)


class _Trainer(WithTerms, Rollouts, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer with our sampler."""

    _name = "GRPO"
