"""The critic: where it lives, how its values come out of the policy's own forward pass, how it comes off again.

There is one wrapped module and one optimizer, because Accelerate takes one model under FSDP2 and DeepSpeed: the critic
is a submodule of the policy, and is called inside the policy's forward.

placement    extra weights                     values are read from
separate     a trunk of its own and a head     the critic's own trunk
head         a head                            the policy's last hidden states
adapter      a second LoRA adapter and a head  the policy's trunk, run again under the critic's adapter
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from trl.trainer.utils import FusedCausalLMOutput

from rlhf_loop.errors import UserError
from rlhf_loop.models.weights import whole_copy

CRITIC = "ppo_critic"
"""Name of the critic among the policy's submodules, and of its adapter among the policy's adapters."""

Placement = Literal["separate", "head", "adapter"]


@dataclass
class OutputWithValues(FusedCausalLMOutput):  # type: ignore[misc]
    """A policy's output with the critic's values, (B, L - 1): entry t is V of the tokens up to and with t.

    Not called `values`: a ModelOutput is a dict, and a field of that name would hide its method."""

    state_values: torch.Tensor | None = None


class Critic(nn.Module):  # type: ignore[misc]
    """A linear head in float32, at first zero, on `trunk` or (None) on the policy's."""

    def __init__(self, width: int, trunk: nn.Module | None = None):
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Values of hidden states: (B, L, width) -> (B, L)."""
        with torch.autocast(states.device.type, enabled=False):
            value = nn.functional.linear(states.float(), self.head.weight.float(), self.head.bias.float())
        return value.squeeze(-1)


def is_critic(parameter: str) -> bool:
    """Whether a parameter of the policy's module, by its name, is the critic's."""
    return CRITIC in parameter.split(".")


def attach_critic(model: Any, placement: Placement, value_model: Any = None, seed: int = 0) -> None:
    """Makes the critic a part of `model` (a causal LM, or a PeftModel of one) and its forward take `state_values`.

    `value_model`, for `separate`: a sequence classifier with one output (its head becomes the critic's) or a headless
    trunk, of the policy's vocabulary; None: a copy of the policy's trunk. The random weights of an adapter are those of
    `seed`, on every rank. Raises `UserError` when the placement and the model do not go together.
    """
    detach_critic(model)  # of an earlier training
    peft = isinstance(model, PeftModel)
    policy = model.get_base_model() if peft else model
    if placement == "adapter" and not peft:
        raise UserError(
            "critic='adapter' is a second LoRA adapter on a policy that has one: pass `peft_config`, or use "
            "critic='separate' or 'head'"
        )
    if value_model is not None and placement != "separate":
        raise UserError(
            f"`value_model` starts a separate critic; this one is critic={placement!r}"
            + (", the default of a policy with an adapter" if peft and placement == "adapter" else "")
            + ": leave `value_model` out, or set critic='separate'"
        )
    trunk, head = (None, None)
    if placement == "separate":
        trunk, head = _trunk_and_head(policy, value_model, peft)
    elif placement == "adapter":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(CRITIC, _adapter_config(model))
        model.set_adapter("default")
    critic = Critic((trunk or policy).config.get_text_config().hidden_size, trunk)
    if head is not None:
        given = whole_copy(head)
        with torch.no_grad():
            critic.head.weight.copy_(given.weight)
            if given.bias is not None:
                critic.head.bias.copy_(given.bias)
    first = next(policy.parameters())
    policy.add_module(CRITIC, critic if hasattr(first, "ds_id") else critic.to(device=first.device))
    thaw_critic(model)
    _extend_forward(policy, placement)
    if placement == "adapter":
        _checkpoint_under_own_adapter(model)


def detach_critic(model: Any) -> None:
    """Takes the critic off again: `model` is as it was before `attach_critic`, with the weights it has now."""
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(policy, CRITIC):
        return
    policy.forward = getattr(policy, CRITIC).policy_forward
    policy.__dict__.pop("_original_forward", None)  # Accelerate's, of mixed precision: with the critic
    delattr(policy, CRITIC)
    model.__dict__.pop("gradient_checkpointing_enable", None)
    if isinstance(model, PeftModel) and CRITIC in model.peft_config:
        model.delete_adapter(CRITIC)
        model.set_adapter("default")


def thaw_critic(model: Any) -> None:
    """Lets the critic's weights be trained: PEFT freezes every adapter that is not the active one, again and again."""
    for name, parameter in model.named_parameters():
        if is_critic(name):
            parameter.requires_grad_(True)


def policy_is_active(model: Any) -> bool:
    """False while a PEFT model stands in for its reference: adapters off, or the adapter `ref` on."""
    if not isinstance(model, PeftModel):
        return True
    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return not layer.disable_adapters and list(layer.active_adapters) == ["default"]


@contextmanager
def without_critic_adapter(model: Any) -> Iterator[None]:
    """Within it, saving a PEFT model leaves the critic's adapter out."""
    config = model.peft_config.pop(CRITIC, None) if isinstance(model, PeftModel) else None
    try:
        yield
    finally:
        if config is not None:
            model.peft_config[CRITIC] = config


def hide_critic_from_vllm(engine: Any) -> None:
    """Lets TRL's `VLLMGeneration` send vLLM the policy's weights alone."""
    named = engine._iter_named_params
    engine._iter_named_params = lambda: (item for item in named() if not is_critic(item[0]))


def load_critic(model: Any, tensors: dict[str, torch.Tensor]) -> set[str]:
    """Puts saved weights, whole ones by their names, into the critic of `model`, sharded or not.

    Gives the names that are on one side only.
    """
    names = {name for name in model.state_dict() if is_critic(name)}
    if names == set(tensors):
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(model, dict(tensors), options=options)
        else:
            model.load_state_dict(tensors, strict=False)
    return names ^ set(tensors)


class ValueTap:
    """Stands in for the model in TRL's own forward helper, and keeps the values that come out."""

    def __init__(self, model: Any, *, detached: bool = False):
        self.model = model
        self.mode = "detached" if detached else "with"
        self.outputs: list[torch.Tensor] = []

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        output = self.model(**inputs, state_values=self.mode)
        self.outputs.append(output.state_values)
        return output

    def values(self, tokens: int) -> torch.Tensor:
        """V before each of the last `tokens` tokens, float32 (B, tokens)."""
        if not self.outputs:
            raise RuntimeError(
                "TRL's helper for log-probabilities did not call the model it was given, so there are no values: this "
                "version of TRL is not one that rlhf-loop was written for; see the pin in pyproject.toml"
            )
        return torch.cat(self.outputs)[:, -tokens:].float()


def _trunk_and_head(policy: Any, value_model: Any, peft: bool) -> tuple[Any, nn.Linear | None]:
    """A separate critic's trunk, ready to train, and the head to start from, if there is one."""
    if value_model is None:
        if peft:
            raise UserError(
                "critic='separate' with a LoRA policy needs `value_model` to start from; or use critic='adapter', "
                "which shares the policy's weights"
            )
        return whole_copy(policy.base_model).requires_grad_(True), None
    head = getattr(value_model, "score", None)
    head = head if isinstance(head, nn.Linear) and head.out_features == 1 else None
    trunk = getattr(value_model, "base_model", value_model)
    mine, its = policy.get_input_embeddings().num_embeddings, trunk.get_input_embeddings().num_embeddings
    if its < mine:
        raise UserError(
            f"the critic's model has embeddings for {its} tokens and the policy's for {mine}: a critic reads the "
            "policy's own tokens, so both need one vocabulary. Leave `value_model` out to start from the policy's trunk"
        )
    return trunk.requires_grad_(True), head


def _adapter_config(model: PeftModel) -> LoraConfig:
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = False
    config.modules_to_save = None
    return config


def _extend_forward(policy: Any, placement: Placement) -> None:
    inner = policy.forward

    @functools.wraps(type(policy).forward)  # generate() checks its arguments against this signature
    def forward(self: Any, *args: Any, state_values: str | None = None, **kwargs: Any) -> Any:
        if state_values is None:
            return inner(*args, **kwargs)
        critic = getattr(self, CRITIC)
        if placement == "head":
            kept: list[torch.Tensor] = []
            hook = self.base_model.register_forward_hook(lambda _, __, output: kept.append(output.last_hidden_state))
            try:
                output = inner(*args, **kwargs)
            finally:
                hook.remove()
            states = kept[0].detach() if state_values == "detached" else kept[0]
        else:
            output = inner(*args, **kwargs)
            read = {name: kwargs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in kwargs}
            trunk = self.base_model if placement == "adapter" else critic.trunk
            with _active_adapter(self, CRITIC) if placement == "adapter" else nullcontext():
                states = trunk(**read, use_cache=False).last_hidden_state
        return OutputWithValues(**dict(output.items()), state_values=critic(states[:, :-1]))

    getattr(policy, CRITIC).policy_forward = inner
    policy.forward = types.MethodType(forward, policy)


@contextmanager
def _active_adapter(model: Any, name: str) -> Iterator[None]:
    """Another active adapter, without PEFT's own way, which would freeze the others."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def _checkpoint_under_own_adapter(model: Any) -> None:
    """Gradient checkpointing recomputes a layer in the backward pass, when the other adapter may be active: gradients
    would be wrong in silence. Here the recomputation runs under the adapter that was active in the forward pass."""
    enable = model.gradient_checkpointing_enable

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
        return nullcontext(), _active_adapter(model, layer.active_adapters[0])

    def gradient_checkpointing_enable(gradient_checkpointing_kwargs: dict[str, Any] | None = None, **more: Any) -> None:
        settings = {**(gradient_checkpointing_kwargs or {})}
        if settings.get("use_reentrant"):
            raise UserError("critic='adapter' needs gradient checkpointing with use_reentrant: false")
        settings.update(use_reentrant=False, context_fn=contexts)
        enable(gradient_checkpointing_kwargs=settings, **more)

    model.gradient_checkpointing_enable = gradient_checkpointing_enable
