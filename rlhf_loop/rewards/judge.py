"""A reward that a model behind a server gives: a score on a scale, by a rubric. Nothing is trained.

`mean`: of the scores of `samples` draws. `expectation`: of the scale's numbers under the probabilities that the model
gives them as its first token (G-Eval: Liu et al. 2023, arXiv 2303.16634, equation 1), which tells answers apart that
would get the same number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.endpoints.answers import Reply
from rlhf_loop.endpoints.asks import Ask, Unanswered, Unreadable, mean
from rlhf_loop.endpoints.client import Client
from rlhf_loop.endpoints.judging import MATERIAL, NOT_OF_THE_FORM, conversation, json_object, marked
from rlhf_loop.records import Message, sound, stable_id
from rlhf_loop.reward_spec import JudgeSpec
from rlhf_loop.rewards.base import Reward
from rlhf_loop.rewards.texts import Text

TOP_LOGPROBS = 20
"""Tokens whose probability is asked for: the most that servers give."""

LARGEST_LOGPROB = 0.01
"""0 but for rounding."""

LEAST_MASS = 0.5
"""Probability of the scale's numbers below which the model was about to say something else."""


def load(folder: Path, spec: JudgeSpec, *, id: str, client: Client) -> JudgeReward:
    """The reward that `spec` describes; `client`: who asks its endpoint."""
    return JudgeReward(spec, id=id, name=Path(folder).name, client=client)


class JudgeReward(Reward):
    """Asks a model for the score of each text."""

    def __init__(self, spec: JudgeSpec, *, id: str, name: str, client: Client):
        """Nothing is asked before the first text."""
        super().__init__(id, name)
        self.spec = spec
        self.client = client
        self._unanswered: Counter[str] = Counter()

    @property
    def unanswered(self) -> Mapping[str, int]:
        """Why texts have no score, with counts."""
        return self._unanswered

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The score of each text, the mean over its draws; None where no draw was answered."""
        draws = self.spec.samples
        asks = [_ask(self.spec, text, draw) for text in texts for draw in range(draws)]
        said = self.client.ask(asks, _reader(self.spec))
        return [self._mean(said[n * draws : (n + 1) * draws]) for n in range(len(texts))]

    def _mean(self, said: Sequence[float | Unanswered]) -> float | None:
        found = mean(said)
        if isinstance(found, Unanswered):
            self._unanswered[found.reason] += 1
            return None
        return found


def _ask(spec: JudgeSpec, text: Text, draw: int) -> Ask:
    said = conversation(text.messages())
    answer = sound(text.completion)
    code = stable_id("marks", said, answer)
    cut = "" if text.finished else "\nThe answer was cut off at a limit of length."
    low, high = spec.scale
    form = _NUMBER if spec.method == "expectation" else _OBJECT
    instructions = _INSTRUCTIONS.format(
        rubric=spec.rubric.strip(), low=low, high=high, material=MATERIAL.format(code=code), form=form
    )
    user = f"{marked('request', code, said)}\n\n{marked('answer', code, answer)}{cut}"
    return Ask(
        messages=(Message(role="system", content=instructions), Message(role="user", content=user)),
        about=text.about,
        sample=draw,
        schema=None if spec.method == "expectation" else _schema(low, high),
        fields={} if spec.temperature is None else {"temperature": spec.temperature},
        optional={"logprobs": True, "top_logprobs": TOP_LOGPROBS} if spec.method == "expectation" else {},
    )


_INSTRUCTIONS = """You score one answer to one request, by this rubric and by nothing else:

{rubric}

The score is a whole number from {low}, the worst, to {high}, the best. {material}

{form}"""
_OBJECT = 'Reply with one JSON object and nothing else, such as {"score": 5}.'
_NUMBER = "Reply with the number and nothing else."


def _schema(low: int, high: int) -> dict[str, Any]:
    score = {"type": "integer", "enum": list(range(low, high + 1))}
    return {"type": "object", "properties": {"score": score}, "required": ["score"], "additionalProperties": False}


def _reader(spec: JudgeSpec) -> Callable[[Reply], float]:
    low, high = spec.scale

    def read(reply: Reply) -> float:
        if spec.method == "mean":
            score = json_object(reply).get("score")
        elif reply.top_logprobs:
            return expectation(reply.top_logprobs[0], low, high)
        else:  # the server does not tell probabilities
            score = _number(reply.text)
        if isinstance(score, bool) or not isinstance(score, int) or not low <= score <= high:
            raise Unreadable(NOT_OF_THE_FORM)
        return float(score)

    return read


def expectation(top: Sequence[tuple[str, float]], low: int, high: int) -> float:
    """The mean of low..high under the probabilities of the tokens that are one of them; `top`: (token, its natural
    logarithm of the probability). Raises `Unreadable` where they hold less than half of the probability, or are no
    logarithms of probabilities."""
    if not all(logprob <= LARGEST_LOGPROB for _, logprob in top):  # not a number is refused too
        raise Unreadable("the server gave logarithms of probabilities above 1")
    found = [(number, math.exp(logprob)) for token, logprob in top if (number := _number(token)) is not None]
    mass = [(number, p) for number, p in found if low <= number <= high]
    total = math.fsum(p for _, p in mass)
    if total < LEAST_MASS:
        raise Unreadable("the model was about to say something other than a number of the scale")
    return math.fsum(number * p for number, p in mass) / total


def _number(text: str) -> int | None:
    """A whole number that is all of a text but for spaces."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
