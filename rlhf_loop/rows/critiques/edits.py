"""Edits as pairs: what somebody wrote in the place of an answer is better than the answer."""

from __future__ import annotations

from collections import Counter

from rlhf_loop.critique_methods import Edits
from rlhf_loop.records import CritiquedCompletion, PreferencePair, stable_id
from rlhf_loop.rows.critiques import Material
from rlhf_loop.rows.parts import answer


def pairs(settings: Edits, material: Material) -> tuple[list[PreferencePair], Counter[str]]:
    """One pair for each answer and each text that stands in its place; edits that leave an answer as it was give none.

    An edit is taken to be whole: whoever rewrote an answer also ended it. Its tokens are those of the chat template,
    for nobody sampled them.
    """
    found: dict[tuple[str, str], CritiquedCompletion] = {}
    dropped: Counter[str] = Counter()
    for row in material.critiques:
        if row.revision is None:
            continue
        if row.revision.strip() == row.text.strip():
            dropped["leaves_the_answer_as_it_was"] += 1
        elif (row.completion_id, row.revision.strip()) in found:
            dropped["the_same_edit_again"] += 1
        else:
            found[row.completion_id, row.revision.strip()] = row
    return [_pair(row, text) for (_, text), row in found.items()], dropped


def _pair(row: CritiquedCompletion, text: str) -> PreferencePair:
    return PreferencePair(
        id=stable_id("edit pair", row.id),
        prompt_id=row.prompt_id,
        group=row.group,
        prompt=row.prompt,
        chosen=answer(text),
        rejected=row.completion,
        chosen_id=row.id,
        rejected_id=row.completion_id,
        rejected_finished=row.finished,
        rejected_token_ids=row.token_ids,
        chosen_by_policy=False,
        rejected_by_policy=row.by_policy,
        origin="edit",
        feedback_ids=row.feedback_ids,
        round=row.round,
    )
