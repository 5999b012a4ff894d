"""PPO with a learned critic: `trainer.py` is the algorithm, `advantages.py` its formulae, `critic.py` the critic."""

from rlhf_loop.updates.ppo.config import PPOConfig
from rlhf_loop.updates.ppo.trainer import PPOTrainer
from rlhf_loop.updates.ppo.update import update

__all__ = ["PPOConfig", "PPOTrainer", "update"]
