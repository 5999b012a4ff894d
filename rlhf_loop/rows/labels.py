"""Answers that people called good or bad, as rows to train on, each with where it came from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from rlhf_loop.records import Completion, Implicit, LabelledCompletion, Preference, Prompt, Thumb, stable_id
from rlhf_loop.rows.parts import answer, origin_of


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
                completion=answer(completion.text),
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
