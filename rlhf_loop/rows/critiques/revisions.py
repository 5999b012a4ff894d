"""Revisions over what they revise (imitation learning from language feedback, Scheurer et al. 2023, arXiv 2303.16755,
as pairs): the policy wrote an answer anew after a critique, and the reward model finds that it became better."""

from __future__ import annotations

from collections import Counter, defaultdict

from rlhf_loop.critique_methods import Revisions
from rlhf_loop.records import Completion, PreferencePair
from rlhf_loop.rows.critiques import Material
from rlhf_loop.rows.critiques.fresh import complained_of, over
from rlhf_loop.rows.parts import best_first


def pairs(settings: Revisions, material: Material) -> tuple[list[PreferencePair], Counter[str]]:
    """One pair for each complained-of answer that waiting candidates revise: over it, the revision with the highest
    score, where that is above the answer's own score, by this round's reward model, by `margin` or more.

    Both are answers to the prompt as it was asked, without the critique: what is learned is to answer so at once.
    """
    complaints = complained_of(row for row in material.critiques if row.origin != "implicit")
    revisions: dict[str, list[Completion]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    for candidate in material.candidates:
        if candidate.parent is None:
            continue
        rows = complaints.get(candidate.parent)
        if rows is None:
            dropped["of_an_answer_without_a_complaint"] += 1
        elif candidate.text.strip() == rows[0].text.strip():
            dropped["copies"] += 1
        elif candidate.id not in material.scores or candidate.parent not in material.scores:
            dropped["without_a_score"] += 1
        else:
            revisions[candidate.parent].append(candidate)
    made: list[PreferencePair] = []
    for completion_id, group in revisions.items():
        best, score = best_first(group, [material.scores[c.id] for c in group])[0]
        margin = score - material.scores[completion_id]
        if margin <= 0 or margin < settings.margin:
            dropped["none_better_by_the_margin"] += 1
        else:
            made.append(over(complaints[completion_id], best, margin, material, "revision"))
    return made, dropped
