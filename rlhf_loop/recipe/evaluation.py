"""A recipe's blocks of evaluation: who judges, on what, and which limits let a new policy through."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlhf_loop.endpoints.judging import RUBRIC
from rlhf_loop.settings import Settings


class RuleJudge(Settings):
    """The annotator's rule without its noise and biases ("gold"); only honest in a simulation."""

    kind: Literal["rule"] = "rule"
    rule: str = "brief_and_complete"


class RewardModelJudge(Settings):
    """A folder of the catalogue: trained at round 0 on the feedback kept apart in split `judge`, or a function or
    somebody else's model, which nothing trains."""

    kind: Literal["reward_model"] = "reward_model"
    model: Path
    trainer: dict[str, Any] = Field(default_factory=dict)


class EndpointJudge(Settings):
    """A model of the recipe's `endpoints` that compares answers in both orders. It answers pairs with known answers
    first: where it agrees with fewer than `min_agreement` of them, the gate promotes nothing."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: str  # a name in `endpoints`
    calibration: Path  # pairs with known answers, in any format that `feedback import` reads
    min_agreement: float = Field(0.7, ge=0, le=1)  # of those pairs
    rubric: str = RUBRIC


class Evaluation(Settings):
    """Held-out prompts: the candidate policy against the base and the last promoted policy."""

    judge: RuleJudge | RewardModelJudge | EndpointJudge = Field(discriminator="kind")
    split: Literal["test", "dev"] = "test"
    samples_per_prompt: int = Field(1, ge=1)
    max_prompts: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)  # None: as in generation
    tie_below: float = Field(1e-9, ge=0)  # judge scores closer than this are a tie
    length_match: float = Field(0.2, gt=0)  # "length-matched": words differ by at most this share
    confidence: float = Field(0.95, gt=0, lt=1)
    bootstrap: int = Field(2000, ge=100)
    plain_text: Path | None = None  # held-out text for the general-ability guard, one paragraph a line


class Gate(Settings):
    """When a new policy is promoted. All limits must hold; null switches one off."""

    rule: Literal["non_inferiority", "superiority"] = "non_inferiority"
    against: Literal["previous", "base"] = "previous"
    margin: float = Field(0.05, ge=0, lt=0.5)  # non-inferiority: low end of the win-rate >= 0.5 - margin
    max_kl: float | None = Field(None, gt=0)  # nats a completion, to the base policy
    max_perplexity_ratio: float | None = Field(1.2, gt=0)  # base perplexity of its answers / of the base's answers
    max_plain_text_ratio: float | None = Field(1.1, gt=0)  # its perplexity on plain text / the base's
    max_length_ratio: float | None = Field(None, gt=0)
    min_distinct_ratio: float | None = Field(0.5, gt=0)  # different word pairs over all, over the base's: no collapse
    max_overlap: float | None = Field(None, gt=0, le=1)  # of the last policy's 4-grams, in answers to the same prompts
    max_came_back: float | None = Field(None, ge=0, le=1)  # of complaints that were fixed (critiques.checks)
