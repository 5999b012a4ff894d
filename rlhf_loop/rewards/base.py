"""What every reward model is, once loaded: a callable with TRL's interface that also gives `Score`s."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import in_step
from rlhf_loop.records import Completion, Message, Prompt, Score
from rlhf_loop.reward_columns import columns_of
from rlhf_loop.reward_values import BadReward, checked_rewards
from rlhf_loop.rewards.texts import Text, make_text, texts_of_completions


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a reward says of one text."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)  # that add up to the value; none for a reward that is one
    critique: str | None = None  # what it wrote of the text before it scored it


class Reward(ABC):
    """A loaded reward model. `id`: its artifact id, written on scores; `name`: its part's name in a breakdown."""

    def __init__(self, id: str, name: str):
        self.id = id
        self.name = name
        self.__name__ = name  # TRL's trainers log a reward function under its name

    @abstractmethod
    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The reward of each text, None where it has nothing to say; `columns` hold what else is known of them, one
        value a text."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """TRL's interface: conversations (lists of messages) or plain strings, and the data set's columns.

        Whether a completion finished is read from the column `finished`, which our trainers pass, else from the last
        of its `completion_ids` (TRL's trainers pass them), else it is taken to have finished. A column `prompt_id` says
        whose the texts are, for deletions.
        """
        if len(prompts) != len(completions):
            raise UserError(f"{self.name}: {len(prompts)} prompts for {len(completions)} completions")
        finished = self._finished(columns, len(completions))
        ids = columns.get("completion_ids") or [None] * len(completions)
        named = columns.get("prompt_id") or [None] * len(completions)
        texts = [_as_text(*row) for row in zip(prompts, completions, finished, ids, named, strict=True)]
        lists = {k: v for k, v in columns.items() if isinstance(v, (list, tuple)) and len(v) == len(texts)}
        with in_step():
            return self.checked_values(texts, lists)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
        """The score of each completion, in order, without those that it has nothing to say of; `prompts` holds theirs
        at least once each, in any order.

        Where the completions are a share of more, all prompts are to be given: a column that one of them has is there
        for all."""
        texts = texts_of_completions(prompts, completions)
        return [
            Score(
                completion_id=c.id,
                reward_model=self.id,
                value=said.value,
                breakdown=said.parts,
                critique=said.critique,
            )
            for c, said in zip(completions, self.with_parts(texts, _columns(prompts, completions)), strict=True)
            if said.value is not None
        ]

    def says(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[Said]:
        """Each value with what else is said of the text."""
        return [Said(value=value) for value in self.checked_values(texts, columns)]

    def checked_values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """`values`, refused with a `UserError` that names the text when one is neither a finite number nor None."""
        return self._checked(self.values(texts, columns), texts) if texts else []

    def with_parts(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[Said]:
        """`says`, refused in the same way."""
        said = self.says(texts, columns) if texts else []
        values = self._checked([one.value for one in said], texts) if texts else []
        return [replace(one, value=value) for one, value in zip(said, values, strict=True)]

    def _checked(self, values: Sequence[Any], texts: Sequence[Text]) -> list[float | None]:
        try:
            return checked_rewards(values, len(texts))
        except BadReward as bad:
            told = f"the reward {self.name} gave {bad}"
            if bad.place is not None:
                raise UserError(f"{told}, for {texts[bad.place].shown()}") from None
            plural = " values" if bad.count is not None else ""
            raise UserError(f"{told}{plural} for {len(texts)} completions; it must give one each") from None

    @property
    def unanswered(self) -> Mapping[str, int]:
        """Why values that were asked for so far are None, with counts, where the reward knows a reason."""
        return {}

    def is_end(self, token: int) -> bool:
        """Whether a completion whose last token is this one has ended by itself; unknown without a tokenizer."""
        return True

    def _finished(self, columns: Mapping[str, Any], count: int) -> list[bool]:
        if columns.get("finished") is not None:
            return [bool(value) for value in columns["finished"]]
        ids = columns.get("completion_ids")
        if ids is not None:
            return [bool(len(row)) and self.is_end(int(row[-1])) for row in ids]
        return [True] * count


class WeightedSum(Reward):
    """Several rewards, each times its weight; the breakdown holds the weighted parts, which add up to the value."""

    def __init__(self, parts: Sequence[tuple[Reward, float]], id: str):
        super().__init__(id, "+".join(reward.name for reward, _ in parts))
        self.parts = list(parts)

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The weighted sums."""
        return [said.value for said in self.says(texts, columns)]

    def says(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[Said]:
        """The weighted sums with their terms, and the parts' critiques; a part that has nothing to say adds none."""
        parts = {reward.name: (weight, reward.with_parts(texts, columns)) for reward, weight in self.parts}
        rows = []
        for row in range(len(texts)):
            terms = {
                name: weight * value for name, (weight, said) in parts.items() if (value := said[row].value) is not None
            }
            critiques = [critique for _, said in parts.values() if (critique := said[row].critique) is not None]
            value = math.fsum(terms.values()) if terms else None
            rows.append(Said(value=value, parts=terms, critique="\n".join(critiques) if critiques else None))
        return rows

    @property
    def unanswered(self) -> Mapping[str, int]:
        """Those of all parts."""
        return sum((Counter(reward.unanswered) for reward, _ in self.parts), Counter())

    def is_end(self, token: int) -> bool:
        """Whether all parts take the token for an end."""
        return all(reward.is_end(token) for reward, _ in self.parts)


def _as_text(prompt: Any, completion: Any, finished: bool, ids: Sequence[int] | None, prompt_id: str | None) -> Text:
    """One row of TRL's interface, conversational or plain."""
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
    if isinstance(completion, str):
        said = completion
    elif completion:
        messages, said = [*messages, *completion[:-1]], completion[-1]["content"] or ""
    else:
        said = ""
    return make_text(messages, said, finished, ids, about=() if prompt_id is None else (prompt_id,))


def _columns(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What a function may ask for beside the texts."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return {
        **columns_of([by_id[completion.prompt_id] for completion in completions], prompts),
        "finished": [completion.finish_reason == "stop" for completion in completions],
    }
