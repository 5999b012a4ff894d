"""How stages are started."""

from __future__ import annotations

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
