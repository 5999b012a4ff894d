"""Which pairs a person is asked about.

To add a way: a function here and a line in `QUESTIONS`, which gives the pairs of one prompt's candidates, those most
worth asking about first. Every choice at random is a function of the seed and of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import combinations

from rlhf_loop.records import Completion, Prompt, Question, Score, stable_id
from rlhf_loop.rows.parts import best_first, candidates_of, choose

Asked = tuple[float, Completion, Completion, str]  # urgency among prompts, the two answers, why


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
    rank = choose(QUESTIONS, strategy, "feedback.question_strategy", "rlhf_loop/rows/questions.py")
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
        urgent = (rank if scored else spread)(group, [value.get(c.id, 0.0) for c in group], f"{seed} {round}")
        fresh = (pair for pair in urgent if frozenset((pair[1].id, pair[2].id)) not in asked)
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
    pairs = sorted(combinations(best_first(completions, scores), 2), key=lambda pair: pair[0][1] - pair[1][1])
    return [(y - x, a, b, f"scores differ by {x - y:.3g}") for (a, x), (b, y) in pairs]


def best_two(completions: Sequence[Completion], scores: Sequence[float], seed: str) -> list[Asked]:
    """The two best first, prompts at random: judges the answers that the next policy will be close to."""
    places = sorted(
        combinations(enumerate(best_first(completions, scores), start=1), 2), key=lambda p: p[0][0] + p[1][0]
    )
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
