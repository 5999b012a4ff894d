"""How weights learn: the critic's at a rate of its own, some not at this step, all of them without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback
from trl.trainer.utils import disable_dropout_in_model

from rlhf_loop.updates.ppo.critic import is_critic


class CriticOptimizer:
    """Put before a trainer of TRL among the base classes of `PPOTrainer`."""

    _clipped: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None  # the critic's, the policy's

    @property
    def in_value_warmup(self: Any) -> bool:
        """Whether only the critic learns now."""
        return bool(self.model.training and self.state.global_step < self.args.value_warmup_steps)

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """Parameter groups of the critic have its own learning rate."""
        if self.optimizer is not None:  # the user's, or that of an earlier `train()`
            return super().create_optimizer(model)  # type: ignore[misc]
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        rate = self.args.critic_learning_rate
        named = (self.model if model is None else model).named_parameters()
        give_critic_its_rate(optimizer, named, self.args.learning_rate if rate is None else rate)
        return optimizer

    def _clip_grad_norm(self: Any, model: Any) -> Any:
        """The critic's gradient and the policy's are clipped apart, except under FSDP and DeepSpeed."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)  # type: ignore[misc]
        if self._clipped is None:  # names are not walked at each step
            named = list(model.named_parameters())
            self._clipped = [p for name, p in named if is_critic(name)], [p for name, p in named if not is_critic(name)]
        critic, policy = self._clipped
        limit = self.args.max_grad_norm
        of_critic = self.accelerator.clip_grad_norm_(critic, self.args.critic_max_grad_norm or limit)
        of_policy = nn.utils.clip_grad_norm_(policy, limit)  # already unscaled by the call before
        self.step_metrics.add_step("train", "val/grad_norm", of_critic)
        self.step_metrics.add_step("train", "policy/grad_norm", of_policy)
        return of_policy

    def frozen_parameters(self: Any) -> list[nn.Parameter]:
        """Parameters that the next optimizer step must not touch."""
        if self._over_budget:
            return list(self.model.parameters())
        if self.in_value_warmup:
            return [parameter for name, parameter in self.model.named_parameters() if not is_critic(name)]
        return []


def give_critic_its_rate(optimizer: Any, named: Iterable[tuple[str, nn.Parameter]], rate: float) -> None:
    """Parts the optimizer's groups of the parameters that are `named`: the critic's learn at `rate`."""
    critic = {id(parameter) for name, parameter in named if is_critic(name)}
    groups = []
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if id(p) in critic]
        others = [p for p in group["params"] if id(p) not in critic]
        groups += [{**group, "params": others}] if others else []
        groups += [{**group, "params": mine, "lr": rate}] if mine else []
    optimizer.param_groups[:] = groups


class Freezing(TrainerCallback):  # type: ignore[misc]
    """Takes the gradients of the parameters that `frozen` gives away before the optimizer sees them: no momentum, no
    weight decay."""

    def __init__(self, frozen: Callable[[], list[nn.Parameter]]):
        self.frozen = frozen

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After clipping, before the step."""
        for parameter in self.frozen():
            parameter.grad = None


def without_dropout(model: nn.Module) -> None:
    """Turns off that of layers, and that of attention, which modules keep as a number."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
