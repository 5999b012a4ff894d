"""Which pairs the update trains on, and which pairs a person is asked about.

To add a way: a function here and a line in `PAIRS` (training pairs of one prompt's scored candidates) or in
`QUESTIONS` (pairs of one prompt's candidates, those most worth asking about first). Two answers with the same text
are never a pair, and every choice at random is a function of the seed and of ids.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, TypeVar

from rlhf_loop.errors import UserError
from rlhf_loop.records import Completion, Message, Preference, PreferencePair, Prompt, Question, Score, Thumb, stable_id

T = TypeVar("T")
Origin = Literal["human", "simulated", "reward", "llm", "code"]
Labelled = tuple[Completion, Completion, float]  # chosen, rejected, margin
Asked = tuple[float, Completion, Completion, str]  # urgency among prompts, the two answers, why


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
                critiques=tuple(dict.fromkeys(p.comment for p in group if p.comment)),
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
    make = _choose(PAIRS, strategy, "pairing.strategy")
    models = {score.reward_model for score in scores}
    if len(models) > 1:
        raise UserError(f"scores of several reward models cannot be compared ({', '.join(sorted(models))}); give one's")
    value = {score.completion_id: score.value for score in scores}
    candidates, summary = candidates_of(prompts, [c for c in completions if c.id in value])
    summary["unscored"] = sum(c.id not in value for c in completions)
    pairs = []
    for prompt in prompts:
        group = candidates.get(prompt.id, [])
        made = make(prompt, group, [value[c.id] for c in group], min_margin, seed)
        summary["prompts_with_one_answer"] += len(group) == 1
        summary["prompts_without_margin"] += len(group) > 1 and not made
        pairs += [
            _pair(prompt, chosen, rejected, margin, "reward", round, reward_model=next(iter(models)))
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
    ranked = _ranked(completions, scores)
    return _labelled([(ranked[0], ranked[-1])] if len(ranked) > 1 else [], min_margin)


def best_random(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """The best against one of the others at random: more varied negatives (Tunstall et al. 2023, arXiv 2310.16944)."""
    ranked = _ranked(completions, scores)
    others = [other for other in ranked[1:] if _wide_enough(ranked[0][1] - other[1], min_margin)]
    if not others:
        return []
    return _labelled([(ranked[0], random.Random(stable_id("best_random", seed, prompt.id)).choice(others))], min_margin)


def all_above_margin(
    prompt: Prompt, completions: Sequence[Completion], scores: Sequence[float], min_margin: float, seed: int
) -> list[Labelled]:
    """Every pair whose scores differ by `min_margin` or more (Khaki et al. 2024, arXiv 2402.10038, who put the
    threshold on sigmoid(difference); here it is on the difference)."""
    return _labelled(combinations(_ranked(completions, scores), 2), min_margin)


PAIRS: dict[str, Callable[[Prompt, Sequence[Completion], Sequence[float], float, int], list[Labelled]]] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "all_above_margin": all_above_margin,
}
"""Name -> `f(prompt, completions, scores, min_margin, seed)`, `scores[i]` being that of `completions[i]`."""


def choose_questions(
    strategy: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    scores: Sequence[Score] | None,
    n: int,
    round: int,
    seed: int,
    already_asked: Collection[frozenset[str]] = frozenset(),
) -> list[Question]:
    """At most `n` pairs to ask about, the most urgent first: one for each prompt before any prompt gets a second.

    `strategy` is a name in `QUESTIONS`; one that needs scores is replaced by `spread` for prompts that have none.
    `already_asked` holds the pairs of completion ids that were asked before: they are not asked again, and prompts
    asked about less come first. Which answer is a and which is b is random. Of a prompt with very many candidates
    16 are looked at, drawn at random.
    """
    rank = _choose(QUESTIONS, strategy, "feedback.question_strategy")
    value = {score.completion_id: score.value for score in scores or ()}
    asked = {frozenset(pair) for pair in already_asked}
    candidates, _ = candidates_of(prompts, completions)
    prompt_of = {c.id: c.prompt_id for c in completions}
    times = Counter(prompt_of[min(pair)] for pair in asked if pair and min(pair) in prompt_of)
    waiting: list[tuple[int, float, str, Completion, Completion, str]] = []
    for prompt_id, group in candidates.items():
        if len(group) > _MOST_CANDIDATES:
            group = sorted(group, key=lambda c: stable_id("candidate", seed, round, c.id))[:_MOST_CANDIDATES]
        scored = rank is random_pairs or rank is spread or all(c.id in value for c in group)
        ranked = (rank if scored else spread)(group, [value.get(c.id, 0.0) for c in group], f"{seed} {round}")
        fresh = (pair for pair in ranked if frozenset((pair[1].id, pair[2].id)) not in asked)
        turn = stable_id("prompt", seed, round, prompt_id)
        for place, (urgency, a, b, reason) in enumerate(fresh):
            note = reason if scored else f"{reason} (no scores yet for {strategy})"
            waiting.append((times[prompt_id] + place, -urgency, turn, a, b, note))
    waiting.sort(key=lambda row: row[:3])
    return [_question(a, b, reason, place, n, round, seed) for place, (*_, a, b, reason) in enumerate(waiting[:n])]


def spread(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """The answers that share the fewest words first, prompts at random: needs no scores."""
    words = [frozenset(c.text.lower().split()) for c in completions]
    shared = sorted(
        ((len(words[i] & words[j]) / max(1, len(words[i] | words[j])), i, j))
        for i, j in combinations(range(len(completions)), 2)
    )
    return [(0.0, completions[i], completions[j], f"share {share:.0%} of their words") for share, i, j in shared]


def random_pairs(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """Any pair, any prompt: an unbiased sample, for measuring agreement or a reward model's accuracy."""
    pairs = list(combinations(completions, 2))
    pairs.sort(key=lambda pair: stable_id("random", seed, pair[0].id, pair[1].id))
    return [(0.0, a, b, "at random") for a, b in pairs]


def closest(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """The smallest difference of scores first, where the reward model knows least (uncertainty sampling, Lewis and
    Gale 1994; for preferences, Muldrew et al. 2024, arXiv 2402.08114)."""
    pairs = sorted(combinations(_ranked(completions, scores), 2), key=lambda pair: pair[0][1] - pair[1][1])
    return [(y - x, a, b, f"scores differ by {x - y:.3g}") for (a, x), (b, y) in pairs]


def best_two(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """The two best first, prompts at random: judges the answers that the next policy will be close to."""
    places = sorted(combinations(enumerate(_ranked(completions, scores), start=1), 2), key=lambda p: p[0][0] + p[1][0])
    return [(0.0, a, b, f"scored {i} and {j} of {len(completions)}") for (i, (a, _)), (j, (b, _)) in places]


def widest(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """The largest difference of scores first: the pairs that `best_worst` trains on, checked by a person."""
    return [(-urgency, a, b, reason) for urgency, a, b, reason in reversed(closest(completions, scores, seed))]


QUESTIONS: dict[str, Callable[[Sequence[Completion], Sequence[float], str], list[Asked]]] = {
    "spread": spread,
    "random": random_pairs,
    "closest": closest,
    "best_two": best_two,
    "best_worst": widest,
}
"""Name -> `f(completions of one prompt, their scores, seed)` -> its pairs, those most worth asking about first."""

_MOST_CANDIDATES = 16


def candidates_of(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> tuple[dict[str, list[Completion]], Counter[str]]:
    """The completions of each prompt by sample and id, each text once, and counts of those left out."""
    counts: Counter[str] = Counter()
    groups: dict[str, dict[str, Completion]] = {prompt.id: {} for prompt in prompts}
    for completion in sorted(completions, key=lambda c: (c.round, c.sample, c.id)):
        group = groups.get(completion.prompt_id)
        if group is None:
            counts["of_other_prompts"] += 1
        elif completion.text.strip() in group:
            counts["identical_texts"] += 1
        else:
            group[completion.text.strip()] = completion
    counts["candidates"] = sum(len(group) for group in groups.values())
    return {prompt_id: list(group.values()) for prompt_id, group in groups.items() if group}, counts


def _ranked(completions: Sequence[Completion], scores: Sequence[float]) -> list[tuple[Completion, float]]:
    """Best first; equal scores by sample and id, so that the order never depends on the order given."""
    return sorted(zip(completions, scores, strict=True), key=lambda row: (-row[1], row[0].sample, row[0].id))


def _labelled(
    pairs: Iterable[tuple[tuple[Completion, float], tuple[Completion, float]]], min_margin: float
) -> list[Labelled]:
    return [
        (better, worse, high - low)
        for (better, high), (worse, low) in pairs
        if _wide_enough(high - low, min_margin) and not _same_text(better, worse)
    ]


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
    critiques: tuple[str, ...] = (),
) -> PreferencePair:
    return PreferencePair(
        id=stable_id("pair", chosen.id, rejected.id, origin, round, feedback_ids, reward_model),
        prompt_id=prompt.id,
        group=prompt.group,
        prompt=prompt.messages,
        chosen=(Message(role="assistant", content=chosen.text),),
        rejected=(Message(role="assistant", content=rejected.text),),
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
        critiques=critiques,
    )


def origin_of(preference: Preference | Thumb) -> Literal["human", "simulated", "llm", "code"]:
    """Who said it."""
    if preference.source == "simulated":
        return "simulated"
    origins: dict[str, Literal["human", "simulated", "llm", "code"]] = {"HUMAN": "human", "LLM": "llm", "CODE": "code"}
    return origins[preference.annotator.kind]


def _question(a: Completion, b: Completion, reason: str, place: int, n: int, round: int, seed: int) -> Question:
    first, second = sorted((a, b), key=lambda c: stable_id("side", seed, round, c.id))
    return Question(
        id=stable_id("question", round, first.id, second.id),
        prompt_id=a.prompt_id,
        a_id=first.id,
        b_id=second.id,
        round=round,
        priority=1 - place / n,
        reason=reason,
    )


def _choose(table: Mapping[str, T], name: str, setting: str) -> T:
    if name not in table:
        raise UserError(f"{setting}: there is no `{name}`; rlhf_loop/rows/pairing.py has: {', '.join(table)}")
    return table[name]
