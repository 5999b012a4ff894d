"""Is the new policy better? Held-out prompts, a judge, and what may have been lost on the way.

`evaluate` composes the parts, each of which works alone: `judging` and `winrate` (numpy), `text` (nothing), `drift` and
`language_model` (torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.evaluation.drift import Models, kl_and_perplexities, ratio
from rlhf_loop.evaluation.judging import Answers, Comparer, Scorer, judge_says, proxy_says
from rlhf_loop.evaluation.measured import Measured
from rlhf_loop.evaluation.text import collapse, diversity, length, word_counts
from rlhf_loop.evaluation.winrate import length_matched, win_rate
from rlhf_loop.recipe import Evaluation
from rlhf_loop.records import Completion, Prompt

__all__ = ["Comparer", "Measured", "Models", "Scorer", "diversity", "evaluate", "length", "length_matched", "win_rate"]


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
    our_words, their_words = word_counts(ours), word_counts(theirs)
    statistics: dict[str, Any] = {
        "tie_below": settings.tie_below,
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
    }

    answers = Answers(questions=questions, ours=ours, theirs=theirs, last=None if previous is None else last)
    said = judge_says(judge, answers, settings, statistics)
    result: dict[str, Any] = {
        "prompts": len(set(groups)),
        **said.rates,
        "judge": {"name": judge_name, "simulated": simulated, **said.means},
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
    result["length"]["ratio"] = ratio(result["length"]["words"], result["length"]["base"]["words"])
    rows = [
        {
            "prompt_id": ours[i].prompt_id,
            "sample": ours[i].sample,
            "candidate_id": ours[i].id,
            "base_id": theirs[i].id,
            "previous_id": last[i].id,
            **said.rows[i],
            "candidate_words": our_words[i],
            "base_words": their_words[i],
        }
        for i in range(len(ours))
    ]
    if proxy is not None:
        result["proxy"] = proxy_says(proxy, answers, statistics)
    if models is not None:
        found, kl = kl_and_perplexities(models, questions, ours, theirs, plain_text, measured or Measured())
        result |= found
        for row, value in zip(rows, kl, strict=True):
            row["kl"] = value
    result["rows"] = rows
    return result


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


def _beside_base(ours: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {**ours, "base": base}
