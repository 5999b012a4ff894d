"""What a judge says of two policies' answers: by scores of each, or by looking at both at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.evaluation.text import word_counts
from rlhf_loop.evaluation.winrate import length_matched, win_rate
from rlhf_loop.recipe import Evaluation
from rlhf_loop.records import Completion, Prompt

Scorer = Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float | None]]
"""Scores each completion as an answer to the prompt at its place; higher is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparer:
    """A judge that looks at two answers at once and scores neither."""

    compare: Callable[[Sequence[tuple[Prompt, Completion, Completion]]], Sequence[float | None]]
    """1 where the first answer is better, 0 where the second is, 0.5 for a tie; None: it does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers of up to three policies, one to the question at its place."""

    questions: Sequence[Prompt]
    ours: Sequence[Completion]  # of the policy that is evaluated
    theirs: Sequence[Completion]  # of the base
    last: Sequence[Completion] | None  # of the last promoted policy; None: that is the base


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a judge says: win-rates, its means, and its part of each row."""

    rates: dict[str, Any]
    means: dict[str, Any]
    rows: list[dict[str, float | None]]


def judge_says(
    judge: Scorer | Comparer,
    answers: Answers,
    settings: Evaluation,
    statistics: Mapping[str, Any],
) -> Judged:
    """What `judge` says of the candidate's answers beside the base's and the last policy's. `statistics` go to
    `win_rate`.

    Raises `UserError` where a score is missing or not a number, or no comparison is decided."""
    if isinstance(judge, Comparer):
        return _compared(judge, answers, settings, statistics)
    return _scored(judge, answers, settings, statistics)


def proxy_says(
    proxy: Scorer,
    answers: Answers,
    statistics: Mapping[str, Any],
) -> dict[str, Any] | None:
    """What the reward model says, over the comparisons of which it has something to say; None where there are none."""
    questions = answers.questions
    ours, theirs = proxy(questions, answers.ours), proxy(questions, answers.theirs)
    told = [
        (float(mine), float(base), prompt.id)
        for mine, base, prompt in zip(ours, theirs, questions, strict=True)
        if mine is not None and base is not None
    ]
    if not told:
        return None
    our_scores, base_scores, groups = map(list, zip(*told, strict=True))
    return {
        "candidate": _mean(our_scores),
        "base": _mean(base_scores),
        "win_rate_vs_base": win_rate(our_scores, base_scores, groups, **statistics),
    }


def _scored(
    judge: Scorer,
    answers: Answers,
    settings: Evaluation,
    statistics: Mapping[str, Any],
) -> Judged:
    questions, ours, theirs, last = answers.questions, answers.ours, answers.theirs, answers.last
    groups = [c.prompt_id for c in ours]
    our_scores, base_scores = _scores(judge, questions, ours), _scores(judge, questions, theirs)
    last_scores = base_scores if last is None else _scores(judge, questions, last)
    return Judged(
        rates={
            "win_rate_vs_base": win_rate(our_scores, base_scores, groups, **statistics),
            "win_rate_vs_previous": win_rate(our_scores, last_scores, groups, **statistics),
            "length_matched_win_rate_vs_base": length_matched(
                our_scores,
                base_scores,
                word_counts(ours),
                word_counts(theirs),
                groups,
                settings.length_match,
                **statistics,
            ),
        },
        means={"candidate": _mean(our_scores), "base": _mean(base_scores), "previous": _mean(last_scores)},
        rows=[
            {"candidate_score": mine, "base_score": base, "previous_score": before}
            for mine, base, before in zip(our_scores, base_scores, last_scores, strict=True)
        ],
    )


def _compared(
    judge: Comparer,
    answers: Answers,
    settings: Evaluation,
    statistics: Mapping[str, Any],
) -> Judged:
    questions, ours, theirs, last = answers.questions, answers.ours, answers.theirs, answers.last
    statistics = {**statistics, "tie_below": 1e-9}  # what is compared here are 1, 0.5 and 0, not scores

    def won_against(others: Sequence[Completion]) -> list[float | None]:
        """Of each comparison; answers of the same text are even without being looked at."""
        differ = [i for i, (a, b) in enumerate(zip(ours, others, strict=True)) if a.text != b.text]
        said = judge.compare([(questions[i], ours[i], others[i]) for i in differ])
        won: list[float | None] = [0.5] * len(ours)
        for i, value in zip(differ, said, strict=True):
            won[i] = value
        return won

    def rate(won: Sequence[float | None], matched: bool = False) -> dict[str, Any] | None:
        told = [(i, value) for i, value in enumerate(won) if value is not None]
        if not told:
            raise UserError(
                "the judge decided none of the comparisons; what it was asked and why it did not is told by "
                "`rlhf-loop status`"
            )
        mine, others = [value for _, value in told], [1 - value for _, value in told]
        groups = [ours[i].prompt_id for i, _ in told]
        if not matched:
            return win_rate(mine, others, groups, **statistics)
        our_words, their_words = (word_counts([side[i] for i, _ in told]) for side in (ours, theirs))
        return length_matched(mine, others, our_words, their_words, groups, settings.length_match, **statistics)

    against_base = won_against(theirs)
    against_last = against_base if last is None else won_against(last)
    rates = {
        "win_rate_vs_base": rate(against_base),
        "win_rate_vs_previous": rate(against_last),
        "length_matched_win_rate_vs_base": rate(against_base, matched=True),
    }
    mean, last_mean = rates["win_rate_vs_base"]["mean"], rates["win_rate_vs_previous"]["mean"]  # type: ignore[index]
    compared = [*against_base, *(against_last if last is not None else ())]
    return Judged(
        rates=rates,
        means={
            "candidate": mean,
            "base": 1 - mean,
            "previous": 1 - last_mean,
            "compared": len(compared),
            "unanswered": sum(value is None for value in compared),
        },
        rows=[
            {"candidate_score": won, "base_score": None, "previous_score": None, "won_vs_previous": before}
            for won, before in zip(against_base, against_last, strict=True)
        ],
    )


def _scores(scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    scores = [math.nan if score is None else float(score) for score in scorer(prompts, completions)]
    if len(scores) != len(completions):
        raise UserError(f"the judge gave {len(scores)} scores for {len(completions)} answers; it must give one each")
    for score, completion in zip(scores, completions, strict=True):
        if score != score:
            raise UserError(f"the judge's score of completion {completion.id} is not a number")
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
