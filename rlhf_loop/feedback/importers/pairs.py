"""Pairs: `{"prompt", "chosen", "rejected"}`, with votes and critiques where people gave them.

    {"id": "7", "group": "debate-3", "prompt": "...", "chosen": "...", "rejected": "...",
     "votes": {"chosen": 4, "rejected": 1, "tie": 0}, "critiques": ["It repeats itself."], "annotator": "p12"}

Only the first three are needed. Votes become the strength of the preference, (chosen - rejected) / all. Where
they went the other way the verdict stands all the same (it may weigh annotators by how reliable they are), without a
strength, and the row is counted. The first critique is the preference's comment, the others are critiques of the
rejected answer. Texts may be conversations, as in TRL, or one message, as in axolotl's
`{"messages", "chosen", "rejected"}`. What was asked may stand in other fields, with a system turn (`asked.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.asked import PARTS, asked, holds_question, not_read
from rlhf_loop.feedback.importers.conversations import answer_of, is_dialogue, prompt_before, turns_in
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    made_of,
    optional_id,
    optional_number,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.importers.times import NAMES as TIMES
from rlhf_loop.records import Critique, Message, Preference, stable_id

RECOGNISES = 'rows of {"prompt", "chosen", "rejected"}, with votes and critiques'
REQUIRED = [("prompt", "chosen", "rejected")]


KNOWN = frozenset((*PARTS, *TIMES, "chosen", "rejected", "id", "annotator", "group", "votes", "critiques", "margin"))
"""The columns that are read."""


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return "chosen" in row and "rejected" in row and holds_question(row)


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions, the preference and further critiques of a row."""
    missing = [key for key in ("chosen", "rejected") if row.get(key) is None]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = _with_earlier_turns(asked(row, given=place.given), row)
    answers = [row["chosen"], row["rejected"]]
    if is_dialogue(row.get("prompt")):  # whose answers begin with the space after `Assistant:`
        answers = [answer.strip() if isinstance(answer, str) else answer for answer in answers]
    return [*pair(row, place, messages, *answers), *not_read(row, KNOWN, place)]


def _with_earlier_turns(messages: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt without the answer that a whole conversation ends with, and with the turns that stand in the answers
    alone."""
    answers = [turns_in(row[name], name) or () for name in ("chosen", "rejected")]
    if messages[-1]["role"] == "assistant":
        texts = [turns[-1]["content"] if turns else row[name] for name, turns in zip(_ANSWERS, answers, strict=True)]
        if messages[-1]["content"] in texts and len(messages) > 1:
            messages = messages[:-1]
    if len(messages) == 1 and all(len(turns) > 2 for turns in answers):
        before, others = (prompt_before(turns, name)[0] for name, turns in zip(_ANSWERS, answers, strict=True))
        if before == others and messages[0] in before:
            return before
    return messages


_ANSWERS = ("chosen", "rejected")


def pair(row: Mapping[str, Any], place: Place, messages: tuple[Message, ...], chosen: Any, rejected: Any) -> list[Any]:
    """Records of a pair whose prompt is already known."""
    prompt = prompt_of(messages, place, optional_id(row, "group"))
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
