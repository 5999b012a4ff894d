"""What TRL sends to vLLM while a policy with an adapter trains, without a trace in the weights that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


def restore_base_after_sync(engine: Any) -> None:
    """Lets TRL's `VLLMGeneration` leave the base of a LoRA policy as it found it.

    It adds the adapter to the base in place (in float32, rounded once), sends the sum, and subtracts the adapter again,
    which in 16 bits gives other weights than before: the base would move at every sync, and the reference with it.
    """
    named = engine._iter_named_params

    def named_parameters() -> Iterator[tuple[str, torch.Tensor]]:
        with _base_kept(engine.model):
            yield from named()

    engine._iter_named_params = named_parameters


@contextmanager
def _base_kept(model: Any) -> Iterator[None]:
    """Afterwards the weights that adapters are on are what they were, bit by bit. Takes their memory once more.

    Under FSDP2 a rank keeps its share of each. Under ZeRO-3 it has none outside of TRL's gathering, and needs none:
    what is changed within that is not written back.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters(recurse=False)]
    before = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)
