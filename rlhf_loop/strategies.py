"""How candidates are made: one line a strategy says where it is and what it is given.

`write(given)` of the named module gives the candidates of a round (`rlhf_loop/generation/strategies/given.py`). To add
one: a file in `rlhf_loop/generation/strategies/` and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rlhf_loop.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """Where a way to make candidates is, and what of the run's past it reads; in round 0 there is none."""

    function: str  # MODULE:FUNCTION
    scores: bool = False  # reads what this round's reward model says
    revises: bool = False  # reads an earlier answer of each prompt, with its critique
    exemplars: bool = False  # reads the best answers to similar prompts


STRATEGIES = {
    "fresh": Strategy(function="rlhf_loop.generation.strategies.fresh:write"),
    "best_of_n": Strategy(function="rlhf_loop.generation.strategies.best_of_n:write", scores=True),
    "refine": Strategy(function="rlhf_loop.generation.strategies.refine:write", revises=True),
    "exemplars": Strategy(function="rlhf_loop.generation.strategies.exemplars:write", exemplars=True),
    "refine+exemplars": Strategy(function="rlhf_loop.generation.strategies.refine:write", revises=True, exemplars=True),
}
"""The name in a recipe -> what it is."""

if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]


class BestOfN(Settings):
    """More samples than are kept: the `samples_per_prompt` that this round's reward model scores highest."""

    n: int = Field(16, ge=2)  # samples of a prompt


class Refine(Settings):
    """An earlier answer and its critique go into the conversation, and the policy writes the answer anew."""

    share: float = Field(0.5, gt=0, le=1)  # of `samples_per_prompt` that are revisions; the others are fresh
    critiques: bool = True  # False: the same without any, to tell what critiques add
    max_depth: int = Field(3, ge=1)  # how many revisions may follow one another
    copy_above: float = Field(0.9, gt=0, le=1)  # share of word runs in common from which a revision is a copy


class Exemplars(Settings):
    """The best-scored answers to the most similar training prompts are put before the prompt as earlier turns."""

    k: int = Field(3, ge=1)  # how many
    neighbours: int = Field(12, ge=1)  # similar prompts that they are chosen among
    min_standing: float = Field(0.5, ge=0, le=1)  # share of the answers of its round that one must score above


class Embed(Settings):
    """Each text once as a vector: for exemplars, and to measure how varied answers are."""

    model: str | None = None  # None: the recipe's own, before any update; as in `policy.model`
    layer: float = Field(0.5, gt=0, le=1)  # the hidden states that are averaged, as a share of the depth
    dtype: Literal["float16", "float32"] = "float16"  # of the vectors that are kept
