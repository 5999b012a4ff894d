"""A recipe's blocks of prompts and feedback: what comes in, what is asked of people, and when that starts a round."""

from __future__ import annotations

import math
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from rlhf_loop.annotators import ANNOTATORS, AnnotatorSettings, annotator_class
from rlhf_loop.settings import Settings

RedactorName = Literal["patterns", "presidio", "none"]
"""What takes personal data out of texts: `rlhf_loop/feedback/privacy/redaction.py`."""


class Prompts(Settings):
    """JSONL files of prompts: `{"id", "prompt"}` or `{"id", "messages"}`, optionally `group, reference, tags`.

    `train` prompts get candidates each round; `test` prompts are only ever evaluated on; `dev` prompts are for
    choosing settings (`evaluation.split: dev`)."""

    train: list[Path] = Field(default_factory=list)
    dev: list[Path] = Field(default_factory=list)
    test: list[Path] = Field(default_factory=list)
    from_feedback: bool = False  # also take prompts from imported feedback, split by group
    test_fraction: float = Field(0.2, ge=0, lt=1)  # of the imported groups, kept for evaluation
    judge_fraction: float = Field(0.0, ge=0, lt=1)  # of the imported groups, kept to train the judge


class Import(Settings):
    """Feedback collected elsewhere."""

    path: Path
    format: str = "auto"  # a name in rlhf_loop/feedback/importers, or auto
    split: Literal["train", "test", "judge"] | None = None  # None: by group, with the fractions of `prompts`
    redact: RedactorName = "patterns"  # personal data, taken out before texts are stored
    scale: dict[str, tuple[float, float]] = Field(default_factory=dict)  # question -> its worst and its best number
    map: dict[str, str] = Field(default_factory=dict)  # the format's name of a column -> the file's

    @field_validator("scale")
    @classmethod
    def _has_two_ends(cls, scale: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in scale.items():
            if low == high or not math.isfinite(low + high):
                raise ValueError(f"{name}: give its worst and its best number, such as [1, 5]")
        return scale


class Validation(Settings):
    """What feedback must satisfy before it trains anything."""

    min_pairs: int = Field(16, ge=0)  # fewer than this stop the round, naming the number needed; 0: none are needed
    max_words: int = Field(2000, ge=1)
    min_critique_words: int = Field(3, ge=1)
    contradictions: Literal["majority", "drop"] = "majority"


if not TYPE_CHECKING:
    AnnotatorSettings = reduce(or_, (annotator_class(kind).Settings for kind in ANNOTATORS))
_BY_KIND: Any = Field(None, discriminator="kind" if len(ANNOTATORS) > 1 else None)  # pydantic asks for two or more


class FeedbackSettings(Settings):
    """Where feedback comes from and what is asked of it."""

    imports: list[Import] = Field(default_factory=list)
    annotator: AnnotatorSettings | None = _BY_KIND  # None: people answer, and the loop waits for them
    questions_per_round: int = Field(64, ge=0)
    question_strategy: str = "spread"  # a name in rlhf_loop/rows/questions.py
    validation: Validation = Field(default_factory=Validation)
    implicit: dict[str, bool] = Field(default_factory=dict)  # what users do that counts as a thumb: {copy: true}

    @property
    def borrows(self) -> list[str]:
        """`from`: other projects of the store, by their names, and other stores, whose feedback is learned from too."""
        named: list[str] = getattr(self, "from")
        return named

    @field_validator("annotator", mode="before")
    @classmethod
    def _is_simulated_unless_it_says(cls, annotator: Any) -> Any:
        return {"kind": "simulated", **annotator} if isinstance(annotator, dict) else annotator


if not TYPE_CHECKING:  # a word of Python's, which a class cannot have as a field
    FeedbackSettings = create_model(
        "FeedbackSettings",
        __base__=FeedbackSettings,
        __doc__=FeedbackSettings.__doc__,
        # not written where it is empty: runs that borrow nothing keep the keys of their steps
        **{"from": (list[str], Field(default_factory=list, exclude_if=lambda named: not named))},
    )


class Annotation(Settings):
    """How people are asked. May change while a run goes on; questions that are queued keep their `overlap`."""

    guideline: str = ""  # Markdown, shown beside every card
    tags: list[str] = Field(  # chips of a critique
        default=["incorrect", "incomplete", "off topic", "unclear", "too long", "unsafe"]
    )
    overlap: int = Field(1, ge=1)  # how many people judge each question
    lease_minutes: float = Field(10, gt=0)  # how long a card is kept for whoever opened it
    calibration: Path | None = None  # pairs with known answers, in any format that `feedback import` reads
    calibration_share: float = Field(0.1, ge=0, lt=1)  # of the cards, where there is a `calibration`
    redact: RedactorName = "patterns"  # personal data, taken out before texts are stored


class Watch(Settings):
    """When `rlhf-loop watch` starts a round. All conditions must hold."""

    min_new: int = Field(64, ge=1)  # valid pieces that the round can train on and the last snapshot did not hold
    max_age_hours: float | None = Field(None, gt=0)  # fewer than `min_new` are enough once the oldest is older
    min_agreement: float | None = Field(None, ge=-1, le=1)  # Krippendorff's alpha of the new preferences
    min_per_tag: dict[str, int] = Field(default_factory=dict)  # new pieces on prompts with these tags (topics)
    cool_down_minutes: float = Field(0, ge=0)  # after the end of a round
    quiet_hours: str | None = Field(None, pattern=r"^\d{2}:\d{2}-\d{2}:\d{2}$")  # local time; no round starts in it
    poll_seconds: float = Field(30, gt=0)
    webhooks: list[str] = Field(default_factory=list)  # URLs that are told of rounds; signed, see docs/watch.md
    command: str | None = None  # run in a shell with the event as JSON on its input
