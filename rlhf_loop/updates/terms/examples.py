"""Critiqued answers as the tokens that a policy reads and writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlhf_loop.models.turns import Tokens, Turns, with_system_prompt
from rlhf_loop.recipe import Policy
from rlhf_loop.records import CritiquedCompletion, Message, Span
from rlhf_loop.updates.terms.term import Examples


class LeftOut(Exception):
    """A row cannot be trained on; the message is the reason, one of few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """How rows become tokens: in which model's turns, after which system prompt, and how many fit."""

    turns: Turns
    policy: Policy
    limit: int | None  # tokens of a sequence; None: no limit is known

    def examples(self, rows: Iterable[CritiquedCompletion], make: Callable[[CritiquedCompletion], Any]) -> Examples:
        """What `make` gives of each row, where it does not say `LeftOut`."""
        made, left_out = [], Counter[str]()
        for row in rows:
            try:
                made.append(make(row))
            except LeftOut as reason:
                left_out[str(reason)] += 1
        return Examples(examples=tuple(made), left_out=left_out)

    def answer(self, row: CritiquedCompletion, told: str | None = None) -> Tokens:
        """The answer after its prompt, in the tokens that were sampled where they are known; with `told` at the end of
        the prompt."""
        prompt = with_system_prompt(row.prompt, self.policy.system_prompt)
        tokens = self.turns.tokens(
            prompt if told is None else with_told(prompt, told), row.completion, finished=row.finished,
            token_ids=row.token_ids, by_policy=row.by_policy,
        )  # fmt: skip
        return self.fitting(tokens)

    def critique(self, row: CritiquedCompletion, question: str) -> Tokens:
        """The critique as the turn after the answer and `question`."""
        prompt = with_system_prompt(row.prompt, self.policy.system_prompt)
        asked = [*prompt, *row.completion, Message(role="user", content=question)]
        said = (Message(role="assistant", content=row.critique),)
        return self.fitting(self.turns.tokens(asked, said, finished=True, by_policy=False))

    def fitting(self, tokens: Tokens) -> Tokens:
        """The tokens, where there are any and not too many; else `LeftOut`."""
        if not tokens.answer:
            raise LeftOut("no tokens")
        if self.limit is not None and len(tokens.prompt) + len(tokens.answer) > self.limit:
            raise LeftOut(f"longer than {self.limit} tokens")
        return tokens


def with_told(prompt: Sequence[Message], told: str) -> list[Message]:
    """A conversation with something more said at the end of the user's last turn, or in a turn of its own."""
    if prompt and prompt[-1]["role"] == "user":
        last = Message(role="user", content=f"{prompt[-1]['content']}\n\n{told}")
        return [*prompt[:-1], last]
    return [*prompt, Message(role="user", content=told)]


def marked(ids: Sequence[int], text: str, spans: Sequence[Span], turns: Turns) -> tuple[bool, ...]:
    """Which of an answer's tokens have a part in `spans`, characters of `text`.

    Of a character of several tokens each has it; what decodes to no character (an end token) is in no span. Raises
    `LeftOut` where `text` is not what the ids say.
    """
    said = turns.text(ids)
    core = text.strip()
    offset = said.find(core) - (len(text) - len(text.lstrip()))  # templates strip, and may open the turn with a thought
    if core not in said:
        raise LeftOut("marked in another text")
    wanted = [(span.start + offset, span.end + offset) for span in spans]
    written = [_agreeing(turns.text(ids[:count]), said) for count in range(len(ids) + 1)]  # whole characters
    parts = [(begin, max(end, begin + 1)) for begin, end in pairwise(written)]
    return tuple(
        begin < len(said) and any(begin < end and start < finish for start, end in wanted) for begin, finish in parts
    )


def _agreeing(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
