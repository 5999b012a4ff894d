"""What the tests of PPO ask a trainer on `token_task`: critics with values, losses, gradients, what was logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from rlhf_loop.updates.ppo.critic import is_critic
from samples import token_task as task

PLACEMENTS = ["separate", "head", "adapter"]


def placed(placement: str) -> dict[str, Any]:
    """The trainer's arguments for a critic of this placement."""
    return {"peft_config": task.lora()} if placement == "adapter" else {"critic": placement}


def with_random_critic(made: Any, policy_too: bool = False) -> Any:
    """The trainer with values, and adapters, that are not 0."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if name.endswith("head.weight") and is_critic(name):
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
            if "lora_B" in name and (policy_too or is_critic(name)) and ".ref." not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return made


def loss_of(made: Any, batch: dict[str, Any]) -> torch.Tensor:
    made.current_gradient_accumulation_steps = 1
    return made._compute_loss(made.model, batch)


def gradients(made: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    made.model.zero_grad()
    loss_of(made, batch).backward()
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def metrics(made: Any, mode: str = "train") -> dict[str, float]:
    """What was added up in the losses so far."""
    return {name: (total / count).item() for name, (total, count) in made.step_metrics.sums(mode).items()}


def log_of(made: Any) -> list[dict[str, float]]:
    return [row for row in made.state.log_history if "loss" in row]


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def log_probs_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a rollout's completion tokens, (B, T), from the logits of a plain forward pass."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]


class EachStep(TrainerCallback):
    """Keeps what `look` gives after every optimizer step."""

    def __init__(self, look: Callable[[], Any]):
        self.look, self.kept = look, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.kept.append(self.look())
