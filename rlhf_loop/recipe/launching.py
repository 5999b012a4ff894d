"""How stages are started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_loop.settings import Settings

StageName = Literal["reward", "score", "update", "evaluate", "checks", "generate", "embed"]


class StageLaunch(Settings):
    """How `launch: child` starts one stage, where it is not as it starts all: a reward model that fits on one device
    needs no eight, a policy that does not needs its weights shared out."""

    devices: int | None = Field(None, ge=1)  # how many accelerators of a machine, the first ones; None: all
    accelerate_config: Path | None = None  # None: the recipe's


def launch_of(stage: str, stages: Mapping[StageName, StageLaunch], accelerate_config: Path | None) -> StageLaunch:
    """How a stage is started, where `stages` are those that are started otherwise and `accelerate_config` is the
    recipe's."""
    own = next((own for name, own in stages.items() if name == stage), StageLaunch())
    return own.model_copy(update={"accelerate_config": own.accelerate_config or accelerate_config})
