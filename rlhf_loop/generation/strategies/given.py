"""What a strategy is given, and what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_loop.generation import Asked
from rlhf_loop.recipe import Generation
from rlhf_loop.records import Completion, Message, Prompt, Recalled


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """An answer to another prompt that stands before a prompt as an earlier turn."""

    prompt: Prompt
    answer: Recalled
    similarity: float  # cosine of the two prompts' vectors

    @property
    def turns(self) -> list[Message]:
        """The prompt's turns without those of the system and the developer, and the answer."""
        asked = [turn for turn in self.prompt.messages if turn["role"] not in ("system", "developer")]
        return [*asked, Message(role="assistant", content=self.answer.text)]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What candidates are made with; what a run does not have yet is None or empty."""

    prompts: Sequence[Prompt]
    settings: Generation
    sample: Callable[[Sequence[Asked], int], list[list[Completion]]]
    """So many answers to each conversation."""
    fits: Callable[[Sequence[Message]], bool]
    """Whether a conversation leaves room for an answer."""
    score: Callable[[Sequence[Completion]], Mapping[str, float]] | None = None
    """This round's reward model: completion id -> score, of those that it has something to say of."""
    earlier: Mapping[str, Recalled] = field(default_factory=dict)
    """Prompt id -> the answer to revise."""
    exemplars: Mapping[str, Sequence[Exemplar]] = field(default_factory=dict)
    """Prompt id -> answers to similar prompts, the nearest last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """An earlier answer that the policy read before it answered a prompt."""

    prompt_id: str
    completion_id: str
    use: Literal["to revise", "exemplar"]
    similarity: float | None = None  # of an exemplar's prompt


@dataclass(kw_only=True, slots=True)
class Written:
    """The candidates of a round, by prompt and sample; what was written and is none, with the reason; what was counted.

    A strategy that only samples leaves the rest empty, and nothing but candidates is written to files.
    """

    completions: list[Completion]
    set_aside: list[tuple[Completion, str]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
