"""The answer with what was said of it, as one text to imitate: what tutorials of learning from feedback do.

It teaches a policy to write an answer and then a critique of it, and whatever was complained of is imitated too. It is
here to be beaten: a method that does no better than this makes nothing of critiques.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rlhf_loop.critique_methods import Naive
from rlhf_loop.records import CritiquedCompletion, Demonstration, stable_id
from rlhf_loop.rows.critiques import Material
from rlhf_loop.rows.parts import answer


def demonstrations(settings: Naive, material: Material) -> tuple[list[Demonstration], Counter[str]]:
    """One for each critique with words; the target is the answer, a blank line and the critique.

    Its tokens are those of the chat template, for nobody sampled the whole, and it ends.
    """
    rows = [row for row in material.critiques if row.critique and row.origin != "implicit"]
    return [_demonstration(row) for row in rows], Counter(without_words=_without(material.critiques))


def _without(rows: Iterable[CritiquedCompletion]) -> int:
    return sum(not row.critique for row in rows)


def _demonstration(row: CritiquedCompletion) -> Demonstration:
    return Demonstration(
        id=stable_id("naive", row.id, row.critique),
        prompt_id=row.prompt_id,
        group=row.group,
        prompt=row.prompt,
        completion=answer(f"{row.text.strip()}\n\n{row.critique}"),
        by_policy=False,
        completion_id=row.completion_id,
        origin="critique",
        feedback_ids=row.feedback_ids,
        round=row.round,
    )
