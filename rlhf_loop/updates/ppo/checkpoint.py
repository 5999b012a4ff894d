"""What PPO's checkpoints hold beside GRPO's: the policy is saved as it would be without a critic, the critic in a
folder beside it, and what the next rollout takes from those before in a small JSON file."""

from __future__ import annotations

import json
import os
from typing import Any

import safetensors.torch

from rlhf_loop.errors import UserError
from rlhf_loop.models.weights import whole_state
from rlhf_loop.updates.ppo.critic import CRITIC, is_critic, load_critic, thaw_critic, without_critic_adapter

_CRITIC_FILE = "critic.safetensors"
_STATE_FILE = "ppo_state.json"


class CriticCheckpoints:
    """Put before a trainer of TRL among the base classes of `PPOTrainer`."""

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy, and the critic beside it; on every rank, since both may be shared out."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        critic = whole_state(self._unwrapped(), is_critic)
        if self.args.should_save:
            folder = os.path.join(output_dir or self.args.output_dir, CRITIC)
            os.makedirs(folder, exist_ok=True)
            tensors = {name: tensor.contiguous().clone() for name, tensor in critic.items()}
            safetensors.torch.save_file(tensors, os.path.join(folder, _CRITIC_FILE))

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        model = self._unwrapped()
        state = model.state_dict() if state_dict is None else state_dict
        policy = {name: tensor for name, tensor in state.items() if not is_critic(name)}
        with without_critic_adapter(model):
            super()._save(folder, state_dict=policy)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self: Any, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save:
            state = {
                "kl_coef": self.kl_coef,
                "episodes": self.episodes,
                "score_scale": self.score_scale.state(),
                "signal": self.signal.state(),
            }
            with open(os.path.join(output_dir, _STATE_FILE), "w") as file:
                json.dump(state, file)

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, _STATE_FILE)):
            return
        with open(os.path.join(checkpoint, _STATE_FILE)) as file:
            state = json.load(file)
        self.kl_coef, self.episodes = state["kl_coef"], state["episodes"]
        self.score_scale.load(state["score_scale"])
        self.signal.load(state["signal"])

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.model if model is None else model
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        folder = os.path.join(resume_from_checkpoint, CRITIC)
        if not os.path.isfile(os.path.join(folder, _CRITIC_FILE)):
            raise UserError(f"{resume_from_checkpoint} holds no critic ({CRITIC}/): it is not a checkpoint of PPO")
        different = load_critic(target, safetensors.torch.load_file(os.path.join(folder, _CRITIC_FILE)))
        if different:
            raise UserError(
                f"the critic in {folder} is not this one (critic={self.placement!r}): {min(different)} differs; resume "
                "with the settings that it was made with"
            )
        thaw_critic(target)  # frozen by PEFT when it loaded the policy's adapter

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if not is_critic(name)]
        super()._issue_warnings_after_load(load_result)  # type: ignore[misc]
