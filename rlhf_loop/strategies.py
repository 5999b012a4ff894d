"""How candidates are made: one line a strategy says where it is and what it is given; below, the recipe's settings.

`write(given)` of the named module gives the candidates of a round (`rlhf_loop/generation/strategies/given.py`). To add
one: a file in `rlhf_loop/generation/strategies/` and a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlhf_loop.engines import EngineName, Vllm
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


class Generation(Settings):
    """How candidates are made, and sampled."""

    engine: EngineName = "transformers"  # rlhf_loop/engines.py
    endpoint: str | None = None  # a name in `endpoints`, for `engine: endpoint`: it writes the candidates
    strategy: StrategyName = "fresh"  # rlhf_loop/strategies.py; which when: docs/generation.md
    samples_per_prompt: int = Field(4, ge=1)
    prompts_per_round: int | None = Field(None, ge=1)  # None: all of them, each round
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: all
    batch_tokens: int = Field(16384, ge=1)  # rows x padded length of one batch; vLLM makes its own
    vllm: Vllm = Field(default_factory=Vllm)
    best_of_n: BestOfN = Field(default_factory=BestOfN)
    refine: Refine = Field(default_factory=Refine)
    exemplars: Exemplars = Field(default_factory=Exemplars)
    embed: Embed | None = None  # None: texts are embedded only where the strategy needs it

    @property
    def embeds(self) -> Embed | None:
        """How texts are embedded; None where they are not."""
        return self.embed or (Embed() if STRATEGIES[self.strategy].exemplars else None)

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that strategies and engines change nothing of the runs that have none of them."""
        values: dict[str, Any] = dump(self)
        unused = {name for name in ("best_of_n", "refine", "exemplars") if name not in self.strategy}
        unused |= {"strategy"} if self.strategy == "fresh" else set()
        unused |= {"embed"} if self.embed is None else set()
        unused |= {"endpoint"} if self.endpoint is None else set()
        unused |= {"vllm"} if self.engine != "vllm" else set()
        return {name: value for name, value in values.items() if name not in unused}
