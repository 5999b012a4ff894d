"""What updates other than those on pairs train on: labelled answers and demonstrations, each with where it came from.

Pairs are made in `rlhf_loop/rows/pairing.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rlhf_loop.errors import UserError
from rlhf_loop.records import (
    Completion,
    Demonstration,
    Edit,
    Implicit,
    LabelledCompletion,
    Message,
    Preference,
    Prompt,
    Score,
    Thumb,
    stable_id,
)
from rlhf_loop.rows.pairing import candidates_of, origin_of


def labels_from_feedback(
    feedback: Iterable[object],
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    contradictions: Literal["majority", "drop"] = "majority",
    implicit: Mapping[str, bool] | None = None,
) -> tuple[list[LabelledCompletion], Counter[str]]:
    """One row for each answer that has thumbs, and counts of what gave none, by reason.

    A thumb is a label; a pair called `both_bad` is a thumb down for each of its answers. Other feedback gives no label:
    the loser of a pair may be a good answer. An answer with thumbs both up and down follows the larger number
    (`majority`) or is left out (`drop`, and when there are as many of both). The row's round is that of its latest
    label.

    `implicit` says which actions of users stand for a thumb (`{"copy": True, "regenerate": False}`); their rows have
    the origin `implicit`. An answer that anybody called good or bad in so many words gets none of them.
    """
    labels: dict[str, list[tuple[bool, Thumb | Preference | Implicit]]] = defaultdict(list)
    done: dict[str, list[tuple[bool, Thumb | Preference | Implicit]]] = defaultdict(list)
    rows, dropped = [], Counter[str]()
    for record in feedback:
        if isinstance(record, Thumb):
            labels[record.completion_id].append((record.label, record))
        elif isinstance(record, Preference) and record.winner == "both_bad":
            labels[record.a_id].append((False, record))
            labels[record.b_id].append((False, record))
        elif isinstance(record, Implicit):
            if record.action in (implicit or {}):
                done[record.completion_id].append(((implicit or {})[record.action], record))
            else:
                dropped["implicit_without_meaning"] += 1
    for completion_id, given in done.items():
        if completion_id in labels:
            dropped["implicit_beside_a_thumb"] += len(given)
        else:
            labels[completion_id] = given
    for completion_id, given in labels.items():
        up = sum(label for label, _ in given)
        if 0 < up < len(given) and (contradictions == "drop" or 2 * up == len(given)):
            dropped["contradictory_thumbs"] += 1
            continue
        label = 2 * up > len(given)
        said = [record for value, record in given if value == label]
        completion = completions[completion_id]
        prompt = prompts[completion.prompt_id]
        ids = tuple(record.id for record in said)
        rows.append(
            LabelledCompletion(
                id=stable_id("label", completion_id, label, ids),
                prompt_id=prompt.id,
                group=prompt.group,
                prompt=prompt.messages,
                completion=_answer(completion.text),
                label=label,
                finished=completion.finish_reason == "stop",
                token_ids=completion.token_ids,
                by_policy=completion.by_policy,
                completion_id=completion_id,
                origin="implicit" if isinstance(said[0], Implicit) else origin_of(said[0]),
                feedback_ids=ids,
                round=max(record.round for record in said),
            )
        )
    return rows, dropped


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
                completion=_answer(record.edited_completion.strip()),
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
                completion=_answer(prompt.reference.strip()),
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
    models = {score.reward_model for score in scores}
    if len(models) > 1:
        raise UserError(f"scores of several reward models cannot be compared ({', '.join(sorted(models))}); give one's")
    value = {score.completion_id: score.value for score in scores}
    candidates, summary = candidates_of(prompts, [c for c in completions if c.id in value])
    summary["unscored"] = sum(c.id not in value for c in completions)
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
                id=stable_id("best of n", best.id, next(iter(models))),
                prompt_id=prompt.id,
                group=prompt.group,
                prompt=prompt.messages,
                completion=_answer(best.text),
                finished=best.finish_reason == "stop",
                token_ids=best.token_ids,
                by_policy=best.by_policy,
                completion_id=best.id,
                origin="best_of_n",
                reward_model=next(iter(models)),
                score=value[best.id],
                margin=margin,
                round=round,
            )
        )
    return rows, dict(summary)


def _answer(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)
