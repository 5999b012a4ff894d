"""Layers below the lowest that is trained are the same in the policy and in its reference: computed once a batch.

With adapters on the upper half of the layers that is half of the reference's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


class FrozenLayers:
    """Keeps what the frozen lower layers of a model gave for a batch, and gives it again for the same tokens.

    Not with dropout in these layers, nor where something else than the adapters above them differs between the passes.
    Layers that leave something for those above in a container that they are handed (Gemma 4's keys and values) are
    computed each time.
    """

    def __init__(self, model: Any):
        self._layers = frozen_layers(model)
        self._kept: dict[int, tuple[torch.Tensor, dict[int, Any]]] = {}  # address of the token ids -> they, by layer
        self._now: dict[int, Any] | None = None

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def of_a_batch(self) -> Iterator[None]:
        """Within it, outputs are kept."""
        before = [layer.__dict__.get("forward") for layer in self._layers]
        for number, layer in enumerate(self._layers):
            layer.forward = partial(self._once, number, layer.forward)
        try:
            yield
        finally:
            self._kept.clear()
            for layer, forward in zip(self._layers, before, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    @contextmanager
    def of_tokens(self, input_ids: torch.Tensor) -> Iterator[None]:
        """Within it, a pass over `input_ids`, the very same tensor each time."""
        self._now = self._kept.setdefault(id(input_ids), (input_ids, {}))[1]
        try:
            yield
        finally:
            self._now = None

    def _once(self, number: int, forward: Any, *arguments: Any, **named: Any) -> Any:
        containers = (MutableMapping, MutableSequence)
        if self._now is None or any(isinstance(given, containers) for given in (*arguments, *named.values())):
            return forward(*arguments, **named)
        if number not in self._now:
            self._now[number] = forward(*arguments, **named)
        return self._now[number]


def frozen_layers(model: Any | None) -> list[torch.nn.Module]:
    """The lowest layers of a transformers model (in a `PeftModel` or not), up to the first with a trained weight; none
    where a weight outside the layers is trained, which may be below them."""
    if model is None:
        return []
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    stacks = [module for module in backbone.children() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        return []
    layers = max(stacks, key=len)
    within = {id(parameter) for parameter in layers.parameters()}
    if any(parameter.requires_grad and id(parameter) not in within for parameter in model.parameters()):
        return []
    frozen: list[torch.nn.Module] = []
    for layer in layers:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            return frozen
        frozen.append(layer)
    return []  # nothing is trained
