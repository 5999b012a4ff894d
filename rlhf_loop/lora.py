"""The settings of an adapter, which recipes and reward models share."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlhf_loop.model_checks import check_targets
from rlhf_loop.settings import Settings


class Lora(Settings):
    """A low-rank adapter (Hu et al. 2021) instead of training every weight."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _not_the_output_layer(cls, targets: str | list[str]) -> str | list[str]:
        check_targets(targets)
        return targets
