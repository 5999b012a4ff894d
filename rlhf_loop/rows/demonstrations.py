"""Answers to imitate, as rows to train on: what people wrote, and the best of what a policy did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rlhf_loop.records import Completion, Demonstration, Edit, Prompt, Score, stable_id
from rlhf_loop.rows.parts import answer, scored_candidates


def demonstrations(
    feedback: Iterable[object], completions: Mapping[str, Completion], prompts: Mapping[str, Prompt]
) -> list[Demonstration]:
    """What people wrote: their edits of answers, then the reference answers of prompts; each text of a prompt once.

    An edit is taken to be whole: whoever rewrote an answer also ended it.
    """
    rows: dict[tuple[str, str], Demonstration] = {}
    for record in feedback:
        if isinstance(record, Edit):
            prompt = prompts[completions[record.completion_id].prompt_id]
            row = Demonstration(
                id=stable_id("edit", record.id),
                prompt_id=prompt.id,
                group=prompt.group,
                prompt=prompt.messages,
                completion=answer(record.edited_completion.strip()),
                by_policy=False,
                completion_id=record.completion_id,
                origin="edit",
                feedback_ids=(record.id,),
                round=record.round,
            )
            rows.setdefault((prompt.id, record.edited_completion.strip()), row)
    for prompt in prompts.values():
        if prompt.reference is not None and prompt.reference.strip():
            row = Demonstration(
                id=stable_id("reference", prompt.id, prompt.reference),
                prompt_id=prompt.id,
                group=prompt.group,
                prompt=prompt.messages,
                completion=answer(prompt.reference.strip()),
                by_policy=False,
                origin="reference",
            )
            rows.setdefault((prompt.id, prompt.reference.strip()), row)
    return list(rows.values())


def best_of_n(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    scores: Sequence[Score],
    min_margin: float,
    round: int,
) -> tuple[list[Demonstration], dict[str, int]]:
    """The highest-scored candidate of each prompt, in the order of `prompts`, and a summary of counts.

    Dong et al. 2023 (arXiv 2304.06767), Touvron et al. 2023 (arXiv 2307.09288, section 3.2.3).

    Only where it beats the mean score of the prompt's other candidates by more than 0 and at least `min_margin`: where
    all are about as good, the best is so by the reward model's noise. Raises `UserError` for scores of more than one
    reward model, which cannot be compared.
    """
    candidates, value, model, summary = scored_candidates(prompts, completions, scores)
    rows = []
    for prompt in prompts:
        group = sorted(candidates.get(prompt.id, []), key=lambda c: (-value[c.id], c.sample, c.id))
        if len(group) < 2:
            summary["prompts_with_one_answer"] += len(group)
            continue
        best, others = group[0], group[1:]
        margin = value[best.id] - sum(value[c.id] for c in others) / len(others)
        if margin <= 0 or margin < min_margin:
            summary["prompts_without_margin"] += 1
            continue
        rows.append(
            Demonstration(
                id=stable_id("best of n", best.id, model),
                prompt_id=prompt.id,
                group=prompt.group,
                prompt=prompt.messages,
                completion=answer(best.text),
                finished=best.finish_reason == "stop",
                token_ids=best.token_ids,
                by_policy=best.by_policy,
                completion_id=best.id,
                origin="best_of_n",
                reward_model=model,
                score=value[best.id],
                margin=margin,
                round=round,
            )
        )
    return rows, dict(summary)
