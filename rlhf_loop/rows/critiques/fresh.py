"""Fresh answers over what people complained of (DRIFT, Wang et al. 2025, arXiv 2510.02341): people mostly say what is
bad, so the good side of a pair is what the policy writes now, where the reward model finds it clearly better."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from rlhf_loop.critique_methods import Fresh
from rlhf_loop.records import Completion, CritiquedCompletion, PreferencePair, stable_id
from rlhf_loop.rows.critiques import Material
from rlhf_loop.rows.parts import answer, best_first, candidates_of, said_by, said_of


def pairs(settings: Fresh, material: Material) -> tuple[list[PreferencePair], Counter[str]]:
    """One pair for each answer that was complained of: over it, the waiting candidate of its prompt with the highest
    score, where that is above the answer's own score, by this round's reward model, by `margin` or more.

    A copy of the answer is never the better side, nor is another answer that was complained of.
    """
    complaints = complained_of(material.critiques)
    candidates, _ = candidates_of(material.prompts, material.candidates)
    bad_texts = defaultdict(set)
    for rows in complaints.values():
        bad_texts[rows[0].prompt_id].add(rows[0].text.strip())
    made: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for completion_id, rows in complaints.items():
        prompt_id = rows[0].prompt_id
        others = [c for c in candidates.get(prompt_id, []) if c.text.strip() not in bad_texts[prompt_id]]
        others = [c for c in others if c.id in material.scores]
        if completion_id not in material.scores:
            dropped["without_a_score"] += 1
        elif not others:
            drawn = "all_candidates_are_copies" if prompt_id in candidates else "prompt_was_not_drawn"
            dropped[drawn] += 1
        else:
            best, score = best_first(others, [material.scores[c.id] for c in others])[0]
            margin = score - material.scores[completion_id]
            if margin <= 0 or margin < settings.margin:
                dropped["none_better_by_the_margin"] += 1
            else:
                made.append(over(rows, best, margin, material, "fresh"))
    return made, dropped


def complained_of(rows: Iterable[CritiquedCompletion]) -> dict[str, list[CritiquedCompletion]]:
    """The answers that more rows call bad than good, by completion id, each with the rows that do."""
    bad: dict[str, list[CritiquedCompletion]] = defaultdict(list)
    good: Counter[str] = Counter()
    for row in rows:
        if row.label is False:
            bad[row.completion_id].append(row)
        elif row.label is True:
            good[row.completion_id] += 1
    return {id: given for id, given in bad.items() if len(given) > good[id]}


def answers(rows: Iterable[CritiquedCompletion]) -> list[Completion]:
    """The answers that were complained of, to be scored."""
    return [said_of(row) for row, *_ in complained_of(rows).values()]


def over(
    rows: Sequence[CritiquedCompletion],
    best: Completion,
    margin: float,
    material: Material,
    origin: Literal["fresh", "revision"],
) -> PreferencePair:
    """The pair of a better answer and the one that `rows` complain of, `margin` below it."""
    first, said = rows[0], said_by((row.critique, row.feedback_ids) for row in rows if row.critique)
    return PreferencePair(
        id=stable_id(f"{origin} pair", best.id, first.completion_id, material.reward_model),
        prompt_id=first.prompt_id,
        group=first.group,
        prompt=first.prompt,
        chosen=answer(best.text),
        rejected=first.completion,
        margin=margin,
        chosen_id=best.id,
        rejected_id=first.completion_id,
        chosen_finished=best.finish_reason == "stop",
        rejected_finished=first.finished,
        chosen_token_ids=best.token_ids,
        rejected_token_ids=first.token_ids,
        chosen_by_policy=best.by_policy,
        rejected_by_policy=first.by_policy,
        origin=origin,
        feedback_ids=tuple(dict.fromkeys(id for row in rows for id in row.feedback_ids)),
        reward_model=material.reward_model,
        round=max(row.round for row in rows),
        critiques=tuple(said),
        critique_ids=tuple(said.values()),
    )
