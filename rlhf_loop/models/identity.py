"""What a number that a model gave follows from, beside the texts: to know whether it is the same again."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rlhf_loop.files.paths import content
from rlhf_loop.models.distributed import world_size
from rlhf_loop.models.memory import device
from rlhf_loop.recipe import Policy


def computed_by(reference: str, policy: Policy) -> list[Any]:
    """The model `reference` by content, loaded as `policy` says, and all else that its numbers depend on to the last
    bit; plain values."""
    settings = policy.model_dump(mode="json", exclude={"model", "dtype"})
    versions = [version(name) for name in ("torch", "transformers", "rlhf-loop")]
    return [content(reference) or reference, settings, policy.precision, device().type, world_size(), versions]
