"""A simulated annotator: follows a documented rule and errs as people do. Its answers are always called simulated."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from rlhf_loop.annotators import AnnotatorSettings
from rlhf_loop.annotators.english import words_of
from rlhf_loop.annotators.rules import RULES, Rule, RuleResult
from rlhf_loop.errors import UserError
from rlhf_loop.records import Annotator, Completion, Edit, Preference, Prompt, Question, Thumb, stable_id


class SimulatedSettings(AnnotatorSettings):
    """An annotator that follows a documented rule and errs as people do; always called simulated in output.

    It prefers a where sigmoid((rule(a) - rule(b) + position_bias*(1 where a is shown first, else -1) +
    length_bias*(words a - words b)/100) / temperature) exceeds a uniform number; with probability `noise` it answers
    at random."""

    kind: Literal["simulated"] = "simulated"
    called: ClassVar[str] = "a simulated annotator"
    rule: str = "brief_and_complete"  # a name in `rules.py`
    temperature: float = Field(0.1, gt=0)
    noise: float = Field(0.05, ge=0, le=1)
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_below: float = Field(0.0, ge=0)  # differences smaller than this are called a tie
    critiques: bool = True
    thumbs_above: float | None = Field(None, ge=0, le=1)  # also a thumb on each answer: up where the rule gives more
    edits: bool = False  # also the losing answer of each question, cut to its best complete part

    @property
    def gives(self) -> frozenset[str]:
        """Preferences, and thumbs and edits where they are asked for."""
        asked = {"preference": True, "thumb": self.thumbs_above is not None, "edit": self.edits}
        return frozenset(kind for kind, given in asked.items() if given)


class SimulatedAnnotator:
    """Answers questions by a rule with temperature, noise, position bias, length bias and ties, all settable.

    Random utility (Bradley & Terry 1952): with

        difference = rule(a) - rule(b) + position_bias * (+1 where a is shown first, else -1)
                                       + length_bias * (words of a - words of b) / 100

    it feels  difference + temperature * L,  L a standard logistic draw, and prefers a where that is positive, so
    P(a preferred) = sigmoid(difference / temperature). Where |difference| < `tie_below` it says tie. With
    probability `noise` it is careless: the difference counts as 0 and there are no ties.

    With `thumbs_above` it also gives each answer that it was shown one thumb, by the same temperature and noise:
    P(up) = sigmoid((rule(answer) - thumbs_above) / temperature). With `edits` it also cuts each answer that it
    preferred to the beginning of it that the rule likes best, where that is better than the whole. Neither changes its
    preferences, nor their ids.
    """

    Settings = SimulatedSettings

    def __init__(self, settings: SimulatedSettings, seed: int):
        """Every draw is a function of `seed` and the question's id; an unknown rule is a `UserError`."""
        self.settings = settings
        self.seed = seed
        self.rule = find_rule(settings.rule)
        self.annotator = Annotator(id=f"simulated:{settings.rule}", kind="CODE")
        self._key = settings.model_dump(mode="json", exclude={"thumbs_above", "edits"})

    def answer(
        self,
        questions: Sequence[Question],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        round: int,
    ) -> list[Preference | Thumb | Edit]:
        """One preference a question, in order, then the thumbs and the edits; the same questions give the same again.

        `strength` is how clearly it was felt, 0..1; `comment` is what it would tell the losing answer (None for a
        tie, for a loser without fault, or with `critiques: false`); `created_at` is 0, for no clock is involved.
        """
        shown = {id: completions[id] for question in questions for id in (question.a_id, question.b_id)}
        judged = {id: judge(self.rule, prompts[c.prompt_id], c) for id, c in shown.items()}
        preferences = [
            self._answer(q, (shown[q.a_id], judged[q.a_id]), (shown[q.b_id], judged[q.b_id]), round) for q in questions
        ]
        given: list[Preference | Thumb | Edit] = [*preferences]
        if self.settings.thumbs_above is not None:
            given += [self._thumb(c, judged[c.id].value, self.settings.thumbs_above, round) for c in shown.values()]
        if self.settings.edits:
            won = dict.fromkeys(p.a_id if p.winner == "a" else p.b_id for p in preferences if p.winner in ("a", "b"))
            edits = (self._edit(prompts[shown[id].prompt_id], shown[id], judged[id].value, round) for id in won)
            given += [edit for edit in edits if edit is not None]
        return given

    def _thumb(self, completion: Completion, value: float, threshold: float, round: int) -> Thumb:
        rng = random.Random(stable_id("simulated thumb", self.seed, completion.id))
        careless = rng.random() < self.settings.noise
        felt = self.settings.temperature * _logistic(rng) + (0.0 if careless else value - threshold)
        return Thumb(
            id=stable_id("simulated thumb", self._key, threshold, self.seed, completion.id),
            prompt_id=completion.prompt_id,
            annotator=self.annotator,
            round=round,
            source="simulated",
            completion_id=completion.id,
            label=felt > 0,
        )

    def _edit(self, prompt: Prompt, completion: Completion, value: float, round: int) -> Edit | None:
        """The answer up to the end of one of its sentences, if that is better than the answer."""
        parts = [completion.text[: end.end()].strip() for end in _SENTENCE_END.finditer(completion.text)]
        whole = [replace(completion, text=part, finish_reason="stop", token_ids=None) for part in parts]
        values = [judge(self.rule, prompt, part).value for part in whole]
        if not values or max(values) <= value:
            return None
        return Edit(
            id=stable_id("simulated edit", self._key, self.seed, completion.id),
            prompt_id=completion.prompt_id,
            annotator=self.annotator,
            round=round,
            source="simulated",
            completion_id=completion.id,
            edited_completion=parts[values.index(max(values))],
        )

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
        logistic = _logistic(rng)

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


_SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*(?=\s|$)")


def _logistic(rng: random.Random) -> float:
    """A standard logistic draw, from one uniform number."""
    uniform = rng.random()
    return math.log((1 - uniform) / max(uniform, 1e-300))


def _names() -> str:
    return f"rlhf_loop/annotators/rules.py has: {', '.join(RULES)}"


def _critique(judged: RuleResult, rng: random.Random) -> str | None:
    """The costliest fault, and now and then up to two more; nobody lists everything."""
    return " ".join(judged.advice[: rng.choice((1, 1, 2, 2, 3))]) or None
