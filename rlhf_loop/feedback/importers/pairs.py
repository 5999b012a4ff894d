"""Pairs: `{"prompt", "chosen", "rejected"}`, with votes and critiques where people gave them.

    {"id": "7", "group": "debate-3", "prompt": "...", "chosen": "...", "rejected": "...",
     "votes": {"chosen": 4, "rejected": 1, "tie": 0}, "critiques": ["It repeats itself."], "annotator": "p12"}

Only the first three are needed. Votes become the strength of the preference, (chosen - rejected) / all. Where
they went the other way the verdict stands all the same (it may weigh annotators by how reliable they are), without a
strength, and the row is counted. The first critique is the preference's comment, the others are critiques of the
rejected answer. Texts may be conversations, as in TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers.fields import (
    Note,
    Place,
    answer_of,
    completion_of,
    made_of,
    messages_of,
    optional_number,
    optional_text,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Critique, Preference, stable_id

RECOGNISES = 'rows of {"prompt", "chosen", "rejected"}, with votes and critiques'
REQUIRED = [("prompt", "chosen", "rejected")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return all(key in row for key in REQUIRED[0])


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions, the preference and further critiques of a row."""
    missing = [key for key in REQUIRED[0] if row.get(key) is None]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = messages_of(row["prompt"], "prompt")
    return pair(row, place, messages, row["chosen"], row["rejected"])


def pair(row: Mapping[str, Any], place: Place, messages: Any, chosen: Any, rejected: Any) -> list[Any]:
    """Records of a pair whose prompt is already known."""
    prompt = prompt_of(messages, place, optional_text(row, "group"))
    a = completion_of(prompt, answer_of(chosen, "chosen", messages))
    b = completion_of(prompt, answer_of(rejected, "rejected", messages))
    notes: list[Any] = []
    strength = _strength(row, notes)
    critiques = _critiques(row.get("critiques"))
    common = made_of(row, place, "preference", prompt.id, a.id, b.id, strength, critiques)
    preference = Preference(
        prompt_id=prompt.id,
        a_id=a.id,
        b_id=b.id,
        winner="a",
        strength=strength,
        comment=critiques[0] if critiques else None,
        **common,
    )
    further = [
        Critique(
            prompt_id=prompt.id,
            completion_id=b.id,
            comment=text,
            **{**common, "id": stable_id("import", "critique", preference.id, number)},
        )
        for number, text in enumerate(critiques[1:], 1)
    ]
    return [prompt, a, b, preference, *further, *notes]


def _strength(row: Mapping[str, Any], notes: list[Any]) -> float | None:
    votes = row.get("votes")
    if votes is not None:
        if not isinstance(votes, Mapping):
            raise RowError('`votes` must be {"chosen": N, "rejected": N, "tie": N}')
        counts = {name: optional_number(votes, name) or 0.0 for name in ("chosen", "rejected", "tie")}
        unknown = [name for name in votes if name not in counts]
        if unknown or min(counts.values()) < 0:
            raise RowError("`votes` must hold counts of chosen, rejected and tie, none below 0 and nothing else")
        if counts["rejected"] > counts["chosen"]:
            notes.append(Note("more `votes` for the rejected answer; the verdict is kept, without a strength"))
            return None
        total = sum(counts.values())
        if total > 0:
            return (counts["chosen"] - counts["rejected"]) / total
    margin = optional_number(row, "margin")
    if margin is not None and not 0 <= margin <= 1:
        notes.append(Note("`margin` is outside 0..1, so it is no strength of a preference and is left out"))
        return None
    return margin


def _critiques(value: Any) -> list[str]:
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise RowError("`critiques` must be a list of texts")
    texts = [text_of(text, f"critiques[{number}]").strip() for number, text in enumerate(values)]
    return list(dict.fromkeys(text for text in texts if text))
