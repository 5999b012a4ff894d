"""Is the new policy better? Held-out prompts, a judge, and what may have been lost on the way.

`evaluate` composes the parts, each of which works alone: `winrate` (numpy), `text` (nothing), `language_model` (torch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.evaluation.measured import Measured
from rlhf_loop.evaluation.text import collapse, diversity, length
from rlhf_loop.evaluation.winrate import length_matched, win_rate
from rlhf_loop.recipe import Evaluation, Policy
from rlhf_loop.records import Completion, Prompt

__all__ = ["Comparer", "Measured", "Models", "Scorer", "diversity", "evaluate", "length", "length_matched", "win_rate"]

Scorer = Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float | None]]
"""Scores each completion as an answer to the prompt at its place; higher is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparer:
    """A judge that looks at two answers at once and scores neither."""

    compare: Callable[[Sequence[tuple[Prompt, Completion, Completion]]], Sequence[float | None]]
    """1 where the first answer is better, 0 where the second is, 0.5 for a tie; None: it does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models that KL and perplexity are measured with."""

    policy: Any  # what wrote the candidate's answers
    tokenizer: Any
    settings: Policy  # for the system prompt
    reference: Any = None  # the base model; None: `policy` is a PeftModel and its base is meant
    batch_tokens: int = 8192  # most tokens of one batch, with padding
    reference_made_of: Any = None  # what the reference is and computes in, by content; None: measured anew each time


def evaluate(
    prompts: Sequence[Prompt],
    candidate: Sequence[Completion],
    base: Sequence[Completion],
    previous: Sequence[Completion] | None,
    *,
    judge: Scorer | Comparer,
    judge_name: str,
    simulated: bool,
    settings: Evaluation,
    seed: int = 0,
    proxy: Scorer | None = None,
    models: Models | None = None,
    plain_text: Sequence[str] | None = None,
    measured: Measured | None = None,
) -> dict[str, Any]:
    """Compares the candidate policy's answers with those of the base and of the last promoted policy.

    `candidate`, `base` and `previous` hold the same samples of the same prompts, in any order; `previous` is None
    while the base is the last promoted policy. `judge` is never the reward model that drove the update; `proxy` is
    that one, to see how far its opinion and the judge's part. What a `Comparer` does not decide is left out and counted
    (`judge.unanswered`); scores of its rows are what the candidate's answers won. Without `models` there is no KL or
    perplexity; without `plain_text` (one paragraph each) no general-ability guard. `measured`: what earlier evaluations
    found out about the reference, which is not measured again. With several ranks all of them call this and all get the
    whole result.

    The result is made of plain numbers, ready for JSON; docs/evaluation.md describes each:
    `win_rate_vs_base`, `win_rate_vs_previous`, `length_matched_win_rate_vs_base` (None: too few), `judge`, `proxy`,
    `kl`, `length`, `diversity`, `collapse`, `perplexity`, `plain_text_perplexity`, `rows` (one a comparison).

    Raises `UserError` when there are no answers, they do not belong to the same prompts and samples, or a score is not
    a number.
    """
    if not prompts or not candidate:
        raise UserError("there are no answers to held-out prompts to compare: give some in `prompts.test`")
    asked = {prompt.id: prompt for prompt in prompts}
    ours = _in_order(candidate, asked, "candidate")
    theirs = _in_order(base, asked, "base")
    last = theirs if previous is None else _in_order(previous, asked, "previous")
    for name, others in (("base", theirs), ("previous", last)):
        _same_places(ours, others, name)
    questions = [asked[c.prompt_id] for c in ours]
    groups = [c.prompt_id for c in ours]
    our_words, their_words = _words(ours), _words(theirs)
    statistics: dict[str, Any] = {
        "tie_below": settings.tie_below,
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
    }

    if isinstance(judge, Comparer):
        judged = _compared(judge, questions, ours, theirs, None if previous is None else last, settings, statistics)
    else:
        judged = _scored(judge, questions, ours, theirs, None if previous is None else last, settings, statistics)
    result: dict[str, Any] = {
        "prompts": len(set(groups)),
        **judged.rates,
        "judge": {"name": judge_name, "simulated": simulated, **judged.means},
        "length": _beside_base(length(ours), length(theirs)),
        "diversity": _beside_base(diversity([c.text for c in ours]), diversity([c.text for c in theirs])),
        "collapse": collapse(ours, theirs, last, seed),
        "confidence": settings.confidence,
        "length_match": settings.length_match,
        "proxy": None,
        "kl": None,
        "perplexity": None,
        "plain_text_perplexity": None,
    }
    result["length"]["ratio"] = _ratio(result["length"]["words"], result["length"]["base"]["words"])
    rows = [
        {
            "prompt_id": ours[i].prompt_id,
            "sample": ours[i].sample,
            "candidate_id": ours[i].id,
            "base_id": theirs[i].id,
            "previous_id": last[i].id,
            **judged.rows[i],
            "candidate_words": our_words[i],
            "base_words": their_words[i],
        }
        for i in range(len(ours))
    ]
    if proxy is not None:
        result["proxy"] = _proxy(proxy, questions, ours, theirs, statistics)
    if models is not None:
        found, kl = _language_model(models, questions, ours, theirs, plain_text, measured or Measured())
        result |= found
        for row, value in zip(rows, kl, strict=True):
            row["kl"] = value
    result["rows"] = rows
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What a judge says: win-rates, its means, and its part of each row."""

    rates: dict[str, Any]
    means: dict[str, Any]
    rows: list[dict[str, float | None]]


def _scored(
    judge: Scorer,
    questions: Sequence[Prompt],
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    last: Sequence[Completion] | None,
    settings: Evaluation,
    statistics: Mapping[str, Any],
) -> _Judged:
    groups = [c.prompt_id for c in ours]
    our_scores, base_scores = _scores(judge, questions, ours), _scores(judge, questions, theirs)
    last_scores = base_scores if last is None else _scores(judge, questions, last)
    return _Judged(
        rates={
            "win_rate_vs_base": win_rate(our_scores, base_scores, groups, **statistics),
            "win_rate_vs_previous": win_rate(our_scores, last_scores, groups, **statistics),
            "length_matched_win_rate_vs_base": length_matched(
                our_scores, base_scores, _words(ours), _words(theirs), groups, settings.length_match, **statistics
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
    questions: Sequence[Prompt],
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    last: Sequence[Completion] | None,
    settings: Evaluation,
    statistics: Mapping[str, Any],
) -> _Judged:
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
        our_words, their_words = (_words([answers[i] for i, _ in told]) for answers in (ours, theirs))
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
    return _Judged(
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


def _language_model(
    models: Models,
    prompts: Sequence[Prompt],
    candidate: Sequence[Completion],
    base: Sequence[Completion],
    plain_text: Sequence[str] | None,
    measured: Measured,
) -> tuple[dict[str, Any], list[float]]:
    """`kl`, `perplexity` and `plain_text_perplexity` of the result, and each answer's KL."""
    from rlhf_loop.evaluation import language_model as lm
    from rlhf_loop.models.loading import to_messages
    from rlhf_loop.models.turns import Turns

    conversations = [to_messages(prompt, models.settings) for prompt in prompts]
    turns = Turns(models.tokenizer, models.policy)
    ours = lm.encode_answers(turns, conversations, candidate)
    theirs = lm.encode_answers(turns, conversations, base)
    likelihoods = lm.likelihoods(models.policy, ours, models.reference, models.batch_tokens)
    tokens = sum(item.tokens for item in likelihoods)
    total = sum(item.kl for item in likelihoods)
    k1 = sum(item.log_prob - item.reference_log_prob for item in likelihoods)

    def plain(model: Any) -> float | None:
        return lm.plain_text_perplexity(model, models.tokenizer, plain_text or (), batch_tokens=models.batch_tokens)

    def of_base() -> dict[str, float | None]:
        with lm.as_reference(models.policy, models.reference) as reference:
            if reference is models.policy and models.reference is not None and ours == theirs:
                log_probs = [item.log_prob for item in likelihoods]
            else:
                log_probs = lm.log_probs(reference, theirs, models.batch_tokens)
            own = lm.perplexity(log_probs, [len(item.answer) for item in theirs])
            return {"answers": own, "plain_text": plain(reference) if plain_text else None}

    if models.reference_made_of is None:
        base_perplexity = of_base()
    else:
        read = [[item.prompt, item.answer] for item in theirs], list(plain_text or ()), models.batch_tokens
        base_perplexity = measured(["perplexity", models.reference_made_of, *read], of_base)
    plain_ours = None
    if plain_text:
        is_base = models.reference is models.policy
        plain_ours = base_perplexity["plain_text"] if is_base else plain(models.policy)
    found = {
        "kl": {
            "per_completion": total / len(likelihoods),
            "per_token": total / tokens if tokens else 0.0,
            "k1": k1 / len(likelihoods),
        },
        "perplexity": _perplexities(
            lm.perplexity([item.reference_log_prob for item in likelihoods], [item.tokens for item in likelihoods]),
            base_perplexity["answers"],
        ),
        "plain_text_perplexity": _perplexities(plain_ours, base_perplexity["plain_text"]) if plain_text else None,
    }
    return found, [item.kl for item in likelihoods]


def _in_order(completions: Sequence[Completion], asked: dict[str, Prompt], name: str) -> list[Completion]:
    for completion in completions:
        if completion.prompt_id not in asked:
            raise UserError(f"the {name} answers hold prompt {completion.prompt_id}, which is not evaluated on")
    place = {prompt_id: i for i, prompt_id in enumerate(asked)}
    return sorted(completions, key=lambda c: (place[c.prompt_id], c.sample))


def _same_places(ours: Sequence[Completion], others: Sequence[Completion], name: str) -> None:
    mine, yours = [(c.prompt_id, c.sample) for c in ours], [(c.prompt_id, c.sample) for c in others]
    if mine != yours:
        apart = sorted(set(mine) ^ set(yours)) or sorted(p for p in set(mine) if mine.count(p) != yours.count(p))
        prompt, sample = apart[0]
        raise UserError(
            f"the candidate's and the {name} answers differ in {len(apart)} places, such as sample {sample} of prompt "
            f"{prompt}; both need the same samples of the same prompts: write the {name} answers again"
        )


def _proxy(
    proxy: Scorer,
    questions: Sequence[Prompt],
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
    statistics: Mapping[str, Any],
) -> dict[str, Any] | None:
    """What the reward model says, over the comparisons of which it has something to say; None where there are none."""
    told = [
        (float(mine), float(base), prompt.id)
        for mine, base, prompt in zip(proxy(questions, ours), proxy(questions, theirs), questions, strict=True)
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


def _scores(scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    scores = [math.nan if score is None else float(score) for score in scorer(prompts, completions)]
    if len(scores) != len(completions):
        raise UserError(f"the judge gave {len(scores)} scores for {len(completions)} answers; it must give one each")
    for score, completion in zip(scores, completions, strict=True):
        if score != score:
            raise UserError(f"the judge's score of completion {completion.id} is not a number")
    return scores


def _words(completions: Sequence[Completion]) -> list[int]:
    return [len(c.text.split()) for c in completions]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _beside_base(ours: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {**ours, "base": base}


def _perplexities(candidate: float | None, base: float | None) -> dict[str, float | None]:
    return {"candidate": candidate, "base": base, "ratio": _ratio(candidate, base)}


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
