"""What single stages ask for of a cluster, whatever it is that they ask for there."""

from __future__ import annotations

from typing import Generic, TypeVar

from rlhf_loop.settings import Settings

Resources = TypeVar("Resources", bound=Settings)


class PerStage(Settings, Generic[Resources]):
    """Stages that ask for something else."""

    reward: Resources | None = None
    score: Resources | None = None
    update: Resources | None = None
    evaluate: Resources | None = None
    checks: Resources | None = None
    generate: Resources | None = None
    embed: Resources | None = None
