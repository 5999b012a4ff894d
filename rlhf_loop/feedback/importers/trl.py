"""TRL's data sets, standard or conversational.

- preferences: `prompt, chosen, rejected`, or the prompt inside both answers
- unpaired preferences: `prompt, completion, label`; thumbs
- prompt-completion: `prompt, completion`; a prompt with a reference answer, and so is a conversation (`messages`)
- prompt-only: `prompt`
- stepwise supervision: `prompt, completions, labels`; a thumb for all steps together, and a critique that marks those
  that are wrong

Language modelling on plain `text` has no prompt that one could answer again, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.importers import chat, pairs
from rlhf_loop.feedback.importers.asked import PARTS, SYSTEM, asked, holds_question, not_read, system_turn
from rlhf_loop.feedback.importers.conversations import answer_of, messages_of, prompt_before, turns_in
from rlhf_loop.feedback.importers.fields import Place, completion_of, list_of, made_of, optional_id, prompt_of, text_of
from rlhf_loop.feedback.importers.times import NAMES as TIMES
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.records import Critique, Message, Prompt, Span, Thumb, stable_id

RECOGNISES = (
    'TRL data sets: rows of {"chosen", "rejected"}, {"prompt", "completion"} with or without "label", '
    '{"prompt", "completions", "labels"}, {"prompt"}'
)
REQUIRED = [
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "completion"),
    ("prompt", "completions", "labels"),
]


KNOWN = frozenset((*PARTS, *TIMES, "completion", "completions", "label", "labels", "id", "annotator", "group"))
"""The columns that are read, beside those of `pairs`."""


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if "chosen" in row and "rejected" in row:
        return True
    if holds_question(row) and ("completion" in row or ("completions" in row and "labels" in row)):
        return True
    return (set(row) <= {"prompt", "id", "group", *SYSTEM} and "prompt" in row) or set(row) == {"text"}


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the completions, and a preference or a thumb."""
    if "chosen" in row or "rejected" in row:
        missing = [key for key in REQUIRED[0] if row.get(key) is None]
        if missing:
            raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
        if holds_question(row) or ("prompt" in row and isinstance(row["chosen"], str)):
            return pairs.parse(row, place)
        messages, chosen, rejected = _split_implicit(row)
        records = pairs.pair(row, place, (*system_turn(row), *messages), chosen, rejected)
        return [*records, *not_read(row, pairs.KNOWN, place)]
    notes = not_read(row, KNOWN, place)
    if "completions" in row:
        return [*_steps(row, place), *notes]
    if "label" not in row:
        judged = next((name for name in chat.SAID if row.get(name) is not None), None)
        if judged is not None:
            raise RowError(f"an answer with `{judged}` beside it is no reference answer; read it with --format chat")
        return [_prompt(row, place), *notes]
    missing = [key for key in ("completion", "label") if row.get(key) is None]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = asked(row, given=place.given)
    prompt = prompt_of(messages, place, optional_id(row, "group"))
    completion = completion_of(prompt, answer_of(row["completion"], "completion", messages))
    label = _label(row["label"])
    common = made_of(row, place, "thumb", prompt.id, completion.id, label)
    thumb = Thumb(prompt_id=prompt.id, completion_id=completion.id, label=label, **common)
    return [prompt, completion, thumb, *notes]


def _prompt(row: Mapping[str, Any], place: Place) -> Prompt:
    """A prompt, with the answer that stands beside it as its reference."""
    if not holds_question(row) and row.get("text") is not None:
        raise RowError("plain `text` has no prompt and no answer that feedback could be about")
    completion = row.get("completion")
    answer: str | None
    if completion is None and row.get("messages") is not None:
        talk = messages_of(row["messages"], "messages")
        messages, answer = prompt_before(talk, "messages")
        messages = (*(system_turn(row) if messages[0]["role"] != "system" else ()), *messages)
    else:
        messages = asked(row, given=place.given)
        answer = None if completion is None else answer_of(completion, "completion", messages)
    prompt = prompt_of(messages, place, optional_id(row, "group"))
    if answer is None:
        return prompt
    # Several answers to one prompt are several prompts, of one group: a prompt has one reference.
    return replace(prompt, id=stable_id("prompt", messages, prompt.group, answer), reference=answer)


def _steps(row: Mapping[str, Any], place: Place) -> list[Any]:
    messages = asked(row, given=place.given)
    steps = [text_of(step, "completions") for step in list_of(row.get("completions"), "completions")]
    labels = [_label(label) for label in list_of(row.get("labels"), "labels")]
    if not steps or len(steps) != len(labels):
        raise RowError(f"`completions` and `labels` must be as many, got {len(steps)} and {len(labels)}")
    prompt = prompt_of(messages, place, optional_id(row, "group"))
    completion = completion_of(prompt, "\n".join(steps))
    about: dict[str, Any] = {"prompt_id": prompt.id, "completion_id": completion.id}
    common = made_of(row, place, "thumb", prompt.id, completion.id, all(labels))
    records: list[Any] = [prompt, completion, Thumb(label=all(labels), **about, **common)]
    if not all(labels):
        spans, start = [], 0
        for step, right in zip(steps, labels, strict=True):
            if not right:
                spans.append(
                    Span(start=start, end=start + len(step), label="wrong step", comment="This step is wrong.")
                )
            start += len(step) + 1
        common = made_of(row, place, "steps", prompt.id, completion.id, labels)
        records.append(Critique(spans=tuple(spans), **about, **common))
    return records


def _split_implicit(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Any, Any]:
    """The prompt that two answers begin with, and what follows it.

    Conversations share their first turns; texts share their first characters, up to the end of a word (as TRL's
    `extract_prompt`).
    """
    chosen, rejected = row["chosen"], row["rejected"]
    first, second = turns_in(chosen, "chosen"), turns_in(rejected, "rejected")
    if (first is None) != (second is None):
        raise RowError("`chosen` and `rejected` must both be texts or both be conversations")
    if first is not None and second is not None:
        shared = _common(first, second)
        shared = min(shared, len(first) - 1, len(second) - 1)
        if shared == 0:
            raise RowError(
                "`chosen` and `rejected` begin with different turns, so there is no prompt; " + _columns(row)
            )
        return first[:shared], list(first[shared:]), list(second[shared:])
    first_text, second_text = text_of(chosen, "chosen"), text_of(rejected, "rejected")
    shared = _common(first_text, second_text)
    while shared > 0 and not (first_text[shared - 1].isspace()):
        shared -= 1
    prompt = first_text[:shared].rstrip()
    if not prompt:
        raise RowError("`chosen` and `rejected` begin with different words, so there is no prompt; " + _columns(row))
    return (Message(role="user", content=prompt),), first_text[shared:], second_text[shared:]


def _columns(row: Mapping[str, Any]) -> str:
    others = [str(name)[:40] for name in row if name not in ("chosen", "rejected")][:8]
    there = f" (there are: {', '.join(others)})" if others else ""
    return f"add `prompt`, or name its column: --map prompt=COLUMN{there}"


def _common(first: Any, second: Any) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _label(value: Any) -> bool:
    found = thumb_of(value)
    if found is None:
        raise RowError(f"`label` must be true or false, got {value!r}")
    return found
