"""A recipe's blocks of what is trained: the reward model, the pairs, the update."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf_loop.algorithms import ALGORITHMS, AlgorithmName, Consumes
from rlhf_loop.lora import Lora
from rlhf_loop.settings import Settings

EVAL_FRACTION = 0.2
"""Of the prompt groups, how many measure a reward model, where the recipe does not say."""


class RewardComponent(Settings):
    """One reward model of a weighted sum: a folder of the catalogue."""

    model: Path
    weight: float = 1.0


class Reward(Settings):
    """What scores completions: one folder of the catalogue, or several with weights.

    `trainer` overrides keys of the `trainer` block of the folders that are trained with TRL."""

    model: Path | None = None
    components: list[RewardComponent] = Field(default_factory=list)
    eval_fraction: float = Field(EVAL_FRACTION, gt=0, lt=1)  # of the prompt groups, held out to measure the model
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Reward:
        if (self.model is None) == (not self.components):
            raise ValueError("give either `model: FOLDER` or `components: [{model: FOLDER, weight: W}, ...]`")
        return self

    def weighted(self) -> list[RewardComponent]:
        """The components; a single model has weight 1."""
        return self.components or [RewardComponent(model=self.model or Path())]


class Pairing(Settings):
    """How pairs for the update are made."""

    strategy: str = "best_worst"  # a name in rlhf_loop/rows/pairs.py
    sources: list[Literal["feedback", "reward"]] = Field(default=["feedback", "reward"])
    min_margin: float = Field(0.0, ge=0)
    max_pairs: int | None = Field(None, ge=1)
    feedback_rounds: int | None = Field(None, ge=1)  # only people's pairs of the last K rounds; None: all


class Update(Settings):
    """The policy update. Start and reference are always explicit: TRL alone would slide to the previous policy."""

    algorithm: AlgorithmName = "dpo"  # what each consumes: rlhf_loop/algorithms.py; which when: docs/updates.md
    start_from: Literal["promoted", "base"] = "promoted"
    reference: Literal["base", "previous"] = "base"
    lora: Lora | None = Field(default_factory=Lora)  # null: full fine-tuning
    trainer: dict[str, Any] = Field(default_factory=dict)
    trainers: dict[str, dict[str, Any]] = Field(default_factory=dict)  # for one algorithm alone; goes over `trainer`

    @property
    def consumes(self) -> Consumes:
        """What `algorithm` learns from."""
        return ALGORITHMS[self.algorithm].consumes

    def trainer_settings(self) -> dict[str, Any]:
        """What goes to the TRL config of `algorithm`: `trainer`, and over it the algorithm's own of `trainers`."""
        return {**self.trainer, **self.trainers.get(self.algorithm, {})}


class WarmStart(Settings):
    """Supervised fine-tuning in round 0, before any candidates: on reference answers of training prompts and on
    imported edits. Its policy is then what `update.start_from: base` and `update.reference: base` mean; win-rates, and
    the KL that is reported, stay against the recipe's own model. Trains what `update.lora` says.

    `trainer` goes to TRL's SFTConfig."""

    trainer: dict[str, Any] = Field(default_factory=dict)

    def as_update(self, update: Update) -> Update:
        """The settings of an sft update that does it."""
        return update.model_copy(update={"algorithm": "sft", "trainer": self.trainer, "trainers": {}})
