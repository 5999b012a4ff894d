"""PPO with a learned critic: `trainer.py` is what happens in turn (a rollout, minibatches, losses), `rollout.py`,
`advantages.py` and `loss.py` are the formulae, `critic.py` is the critic, `optimizer.py` how weights learn."""

from rlhf_loop.updates.ppo.config import PPOConfig
from rlhf_loop.updates.ppo.trainer import PPOTrainer
from rlhf_loop.updates.ppo.update import update

__all__ = ["PPOConfig", "PPOTrainer", "update"]
