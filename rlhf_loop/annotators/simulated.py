"""A simulated annotator: follows a documented rule and errs as people do. Its answers are always called simulated."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal

from rlhf_loop import recipe
from rlhf_loop.annotators.english import words_of
from rlhf_loop.annotators.rules import RULES, Rule, RuleResult
from rlhf_loop.errors import UserError
from rlhf_loop.records import Annotator, Completion, Preference, Prompt, Question, stable_id


class SimulatedAnnotator:
    """Answers questions by a rule with temperature, noise, position bias, length bias and ties, all settable.

    Random utility (Bradley & Terry 1952): with

        difference = rule(a) - rule(b) + position_bias * (+1 where a is shown first, else -1)
                                       + length_bias * (words of a - words of b) / 100

    it feels  difference + temperature * L,  L a standard logistic draw, and prefers a where that is positive, so
    P(a preferred) = sigmoid(difference / temperature). Where |difference| < `tie_below` it says tie. With
    probability `noise` it is careless: the difference counts as 0 and there are no ties.
    """

    def __init__(self, settings: recipe.SimulatedAnnotator, seed: int):
        """Every draw is a function of `seed` and the question's id; an unknown rule is a `UserError`."""
        self.settings = settings
        self.seed = seed
        self.rule = find_rule(settings.rule)
        self.annotator = Annotator(id=f"simulated:{settings.rule}", kind="CODE")
        self._key = settings.model_dump(mode="json")

    def answer(
        self,
        questions: Sequence[Question],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        round: int,
    ) -> list[Preference]:
        """One preference a question, in order; the same questions give the same records again.

        `strength` is how clearly it was felt, 0..1; `comment` is what it would tell the losing answer (None for a
        tie, for a loser without fault, or with `critiques: false`); `created_at` is 0, for no clock is involved.
        """
        shown = {id: completions[id] for question in questions for id in (question.a_id, question.b_id)}
        judged = {id: judge(self.rule, prompts[c.prompt_id], c) for id, c in shown.items()}
        return [
            self._answer(q, (shown[q.a_id], judged[q.a_id]), (shown[q.b_id], judged[q.b_id]), round) for q in questions
        ]

    def _answer(
        self,
        question: Question,
        side_a: tuple[Completion, RuleResult],
        side_b: tuple[Completion, RuleResult],
        round: int,
    ) -> Preference:
        settings = self.settings
        (a, judged_a), (b, judged_b) = side_a, side_b
        rng = random.Random(stable_id("simulated", self.seed, question.id))
        shown_order: Literal["ab", "ba"] = "ab" if rng.random() < 0.5 else "ba"
        careless = rng.random() < settings.noise
        uniform = rng.random()
        logistic = math.log((1 - uniform) / max(uniform, 1e-300))

        difference = judged_a.value - judged_b.value
        difference += settings.position_bias * (1 if shown_order == "ab" else -1)
        difference += settings.length_bias * (len(words_of(a.text)) - len(words_of(b.text))) / 100
        felt = settings.temperature * logistic + (0.0 if careless else difference)
        winner: Literal["a", "b", "tie"] = "a" if felt > 0 else "b"
        if not careless and abs(difference) < settings.tie_below:
            winner = "tie"
        lost = None if winner == "tie" else judged_b if winner == "a" else judged_a
        return Preference(
            id=stable_id("simulated", self._key, self.seed, question.id),
            prompt_id=question.prompt_id,
            annotator=self.annotator,
            round=round,
            comment=_critique(lost, rng) if settings.critiques and lost is not None else None,
            source="simulated",
            a_id=question.a_id,
            b_id=question.b_id,
            winner=winner,
            strength=None if winner == "tie" else min(1.0, abs(felt)),
            shown_order=shown_order,
        )


def gold_scores(rule: str, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """The judgement of a rule without noise or bias, 0..1, of each completion; `prompts[i]` is the prompt of
    `completions[i]`. Raises `UserError` for an unknown rule and `ValueError` where the two do not belong together.
    """
    function = find_rule(rule)
    return [judge(function, prompt, completion).value for prompt, completion in zip(prompts, completions, strict=True)]


def judge(rule: Rule, prompt: Prompt, completion: Completion) -> RuleResult:
    """What `rule` says of a completion, given the last thing the user said in its prompt."""
    if completion.prompt_id != prompt.id:
        raise ValueError(f"completion {completion.id} answers prompt {completion.prompt_id}, not {prompt.id}")
    said = [message["content"] for message in prompt.messages if message["role"] == "user"]
    return rule(said[-1] if said else "", completion.text, completion.finish_reason == "stop")


def find_rule(name: str) -> Rule:
    """The rule of that name; a `UserError` that lists the names when there is none."""
    if name not in RULES:
        raise UserError(f"no rule called `{name}` (feedback.annotator.rule, evaluation.judge.rule); {_names()}")
    return RULES[name]


def _names() -> str:
    return f"rlhf_loop/annotators/rules.py has: {', '.join(RULES)}"


def _critique(judged: RuleResult, rng: random.Random) -> str | None:
    """The costliest fault, and now and then up to two more; nobody lists everything."""
    return " ".join(judged.advice[: rng.choice((1, 1, 2, 2, 3))]) or None
