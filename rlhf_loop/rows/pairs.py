"""Pairs that an update or a reward model trains on: of what people preferred, and of a reward model's scores.

To add a way to make them of scores: a function here and a line in `PAIRS`. Two answers with the same text are never a
pair, and every choice at random is a function of the seed and of ids.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import Literal

from rlhf_loop.ngrams import ngrams, tokenize
from rlhf_loop.records import Completion, Preference, PreferencePair, Prompt, Score, stable_id
from rlhf_loop.rows.parts import answer, best_first, choose, origin_of, said_by, scored_candidates

Origin = Literal["human", "simulated", "reward", "llm", "code", "edit", "fresh", "revision"]
Labelled = tuple[Completion, Completion, float]  # chosen, rejected, margin


def pairs_from_feedback(
    preferences: Iterable[Preference],
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    round: int | None = None,
) -> tuple[list[PreferencePair], Counter[str]]:
    """Training pairs of what people (or judges, or rules) preferred, and counts of what gave no pair, by reason.

    `margin` is the strength of the preference (0 where none was given), `critiques` the comments on the losing
    answer. Several preferences for the same answer of a pair become one pair that names them all, with their mean
    strength. The pair's round is that of its latest preference; with `round`, feedback that this round could not
    have seen (given in it or later) is left out.
    """
    agreeing: dict[tuple[str, str], list[Preference]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    for preference in preferences:
        if round is not None and preference.round >= max(round, 1):
            dropped["of_a_later_round"] += 1
        elif preference.winner in ("tie", "both_bad"):
            dropped[preference.winner] += 1
        elif preference.a_id not in completions or preference.b_id not in completions:
            dropped["unknown_completion"] += 1
        elif preference.prompt_id not in prompts:
            dropped["unknown_prompt"] += 1
        elif _same_text(completions[preference.a_id], completions[preference.b_id]):
            dropped["identical_texts"] += 1
        else:
            ids = (preference.a_id, preference.b_id)
            agreeing[ids if preference.winner == "a" else ids[::-1]].append(preference)
    pairs = []
    for (chosen_id, rejected_id), group in agreeing.items():
        dropped["merged_with_the_same_preference"] += len(group) - 1
        strengths = [p.strength for p in group if p.strength is not None]
        pairs.append(
            _pair(
                prompts[group[0].prompt_id],
                completions[chosen_id],
                completions[rejected_id],
                margin=sum(strengths) / len(strengths) if strengths else 0.0,
                origin=origin_of(group[0]),
                round=max(p.round for p in group),
                feedback_ids=tuple(p.id for p in group),
                critiques=said_by((p.comment, [p.id]) for p in group if p.comment),
            )
        )
    return pairs, +dropped


def pairs_from_scores(
    strategy: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    scores: Sequence[Score],
    min_margin: float = 0.0,
    max_pairs: int | None = None,
    round: int = 0,
    seed: int = 0,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Reward-labelled pairs among each prompt's candidates, in the order of `prompts`, and a summary of counts.

    `strategy` is a name in `PAIRS`. Pairs whose scores differ by less than `min_margin`, or not at all, are not made.
    Over `max_pairs` a random share is kept. Raises `UserError` for an unknown strategy and for scores of more than
    one reward model, which cannot be compared.
    """
    make = choose(PAIRS, strategy, "pairing.strategy", "rlhf_loop/rows/pairs.py")
    candidates, value, model, summary = scored_candidates(prompts, completions, scores)
    pairs = []
    for prompt in prompts:
        group = candidates.get(prompt.id, [])
        made = make(prompt, group, [value[c.id] for c in group], min_margin, seed)
        summary["prompts_with_one_answer"] += len(group) == 1
        summary["prompts_without_margin"] += len(group) > 1 and not made
        pairs += [
            _pair(prompt, chosen, rejected, margin, "reward", round, reward_model=model)
            for chosen, rejected, margin in made
        ]
    if max_pairs is not None and len(pairs) > max_pairs:
        summary["left_out_over_max_pairs"] = len(pairs) - max_pairs
        kept = {p.id for p in sorted(pairs, key=lambda p: stable_id("max pairs", seed, round, p.id))[:max_pairs]}
        pairs = [pair for pair in pairs if pair.id in kept]
    summary["pairs"] = len(pairs)
    return pairs, dict(summary)


def best_worst(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """The best against the worst of N: the widest margin (Yuan et al. 2024, arXiv 2401.10020; Dong et al. 2024,
    arXiv 2405.07863)."""
    ranked = best_first(completions, scores)
    return _labelled([(ranked[0], ranked[-1])] if len(ranked) > 1 else [], min_margin)


def best_random(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """The best against one of the others at random: more varied negatives (Tunstall et al. 2023, arXiv 2310.16944)."""
    ranked = best_first(completions, scores)
    others = [other for other in ranked[1:] if _wide_enough(ranked[0][1] - other[1], min_margin)]
    if not others:
        return []
    return _labelled([(ranked[0], random.Random(stable_id("best_random", seed, prompt.id)).choice(others))], min_margin)


def all_above_margin(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """Every pair whose scores differ by `min_margin` or more (Khaki et al. 2024, arXiv 2402.10038, who put the
    threshold on sigmoid(difference); here it is on the difference)."""
    return _labelled(combinations(best_first(completions, scores), 2), min_margin)


def diverse(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """The least common of the good answers against the most common of the bad ones (DivPO, Lanchantin et al. 2025,
    arXiv 2501.18101).

    Good and bad: above and below the middle between the prompt's best and worst score. How common an answer is: the
    mean share of the other answers that each of its words and word pairs stands in; equals by score.
    """
    if len(completions) < 2:
        return []
    ranked = best_first(completions, scores)
    common = dict(
        zip((completion.id for completion, _ in ranked), _commonness([c.text for c, _ in ranked]), strict=True)
    )
    middle = (ranked[0][1] + ranked[-1][1]) / 2
    good = [row for row in ranked if row[1] > middle]
    bad = [row for row in ranked if row[1] < middle]
    if not good or not bad:
        return []
    chosen = min(good, key=lambda row: common[row[0].id])
    rejected = max(reversed(bad), key=lambda row: common[row[0].id])
    return _labelled([(chosen, rejected)], min_margin)


PAIRS: dict[str, Callable[[Prompt, Sequence[Completion], Sequence[float], float, int], list[Labelled]]] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "all_above_margin": all_above_margin,
    "diverse": diverse,
}
"""Name -> `f(prompt, completions, scores, min_margin, seed)`, `scores[i]` being that of `completions[i]`."""


def _labelled(
    pairs: Iterable[tuple[tuple[Completion, float], tuple[Completion, float]]], min_margin: float
) -> list[Labelled]:
    return [
        (better, worse, high - low)
        for (better, high), (worse, low) in pairs
        if _wide_enough(high - low, min_margin) and not _same_text(better, worse)
    ]


def _commonness(texts: Sequence[str]) -> list[float]:
    """Of each of two texts or more, 0..1."""
    tokens = [tokenize(text) for text in texts]
    grams = [{gram for n in (1, 2) for gram in ngrams(words, n)} for words in tokens]
    holders = Counter(gram for mine in grams for gram in mine)
    others = len(texts) - 1
    return [sum(holders[gram] - 1 for gram in mine) / others / len(mine) if mine else 1.0 for mine in grams]


def _wide_enough(margin: float, min_margin: float) -> bool:
    return margin > 0 and margin >= min_margin


def _same_text(a: Completion, b: Completion) -> bool:
    return a.text.strip() == b.text.strip()


def _pair(
    prompt: Prompt,
    chosen: Completion,
    rejected: Completion,
    margin: float,
    origin: Origin,
    round: int,
    feedback_ids: tuple[str, ...] = (),
    reward_model: str | None = None,
    critiques: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> PreferencePair:
    return PreferencePair(
        id=stable_id("pair", chosen.id, rejected.id, origin, round, feedback_ids, reward_model),
        prompt_id=prompt.id,
        group=prompt.group,
        prompt=prompt.messages,
        chosen=answer(chosen.text),
        rejected=answer(rejected.text),
        margin=margin,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen_finished=chosen.finish_reason == "stop",
        rejected_finished=rejected.finish_reason == "stop",
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
        chosen_by_policy=chosen.by_policy,
        rejected_by_policy=rejected.by_policy,
        origin=origin,
        feedback_ids=feedback_ids,
        reward_model=reward_model,
        round=round,
        critiques=tuple(critiques),
        critique_ids=tuple(critiques.values()),
    )
