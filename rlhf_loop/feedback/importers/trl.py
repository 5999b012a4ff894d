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

from rlhf_loop.feedback.importers import pairs
from rlhf_loop.feedback.importers.fields import (
    Place,
    answer_of,
    completion_of,
    list_of,
    made_of,
    messages_of,
    prompt_before,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.importers.fields import optional_text as _optional_text
from rlhf_loop.feedback.rows import RowError
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


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if any(all(key in row for key in keys) for keys in REQUIRED):
        return True
    return (set(row) <= {"prompt", "id", "group"} and "prompt" in row) or set(row) == {"text"}


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the completions, and a preference or a thumb."""
    if "chosen" in row or "rejected" in row:
        missing = [key for key in REQUIRED[0] if row.get(key) is None]
        if missing:
            raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
        if row.get("prompt") is not None:
            return pairs.parse(row, place)
        messages, chosen, rejected = _split_implicit(row["chosen"], row["rejected"])
        return pairs.pair(row, place, messages, chosen, rejected)
    if "completions" in row:
        return _steps(row, place)
    if "label" not in row:
        return [_prompt(row, place)]
    missing = [key for key in REQUIRED[1] if row.get(key) is None]
    if missing:
        raise RowError(f"missing: {', '.join(f'`{key}`' for key in missing)}")
    messages = messages_of(row["prompt"], "prompt")
    prompt = prompt_of(messages, place, _optional_text(row, "group"))
    completion = completion_of(prompt, answer_of(row["completion"], "completion", messages))
    label = _label(row["label"])
    common = made_of(row, place, "thumb", prompt.id, completion.id, label)
    thumb = Thumb(prompt_id=prompt.id, completion_id=completion.id, label=label, **common)
    return [prompt, completion, thumb]


def _prompt(row: Mapping[str, Any], place: Place) -> Prompt:
    """A prompt, with the answer that stands beside it as its reference."""
    if "prompt" not in row and "messages" not in row:
        raise RowError("plain `text` has no prompt and no answer that feedback could be about")
    if "prompt" in row:
        messages = messages_of(row["prompt"], "prompt")
        completion = row.get("completion")
        answer = None if completion is None else answer_of(completion, "completion", messages)
    else:
        messages, answer = prompt_before(messages_of(list_of(row["messages"], "messages"), "messages"), "messages")
    prompt = prompt_of(messages, place, _optional_text(row, "group"))
    if answer is None:
        return prompt
    # Several answers to one prompt are several prompts, of one group: a prompt has one reference.
    return replace(prompt, id=stable_id("prompt", messages, prompt.group, answer), reference=answer)


def _steps(row: Mapping[str, Any], place: Place) -> list[Any]:
    messages = messages_of(row.get("prompt"), "prompt")
    steps = [text_of(step, "completions") for step in list_of(row.get("completions"), "completions")]
    labels = [_label(label) for label in list_of(row.get("labels"), "labels")]
    if not steps or len(steps) != len(labels):
        raise RowError(f"`completions` and `labels` must be as many, got {len(steps)} and {len(labels)}")
    prompt = prompt_of(messages, place, _optional_text(row, "group"))
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


def _split_implicit(chosen: Any, rejected: Any) -> tuple[tuple[Message, ...], Any, Any]:
    """The prompt that two answers begin with, and what follows it.

    Conversations share their first turns; texts share their first characters, up to the end of a word (as TRL's
    `extract_prompt`).
    """
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise RowError("`chosen` and `rejected` must both be texts or both be conversations")
    if isinstance(chosen, list):
        first, second = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        shared = _common(first, second)
        shared = min(shared, len(first) - 1, len(second) - 1)
        if shared == 0:
            raise RowError("`chosen` and `rejected` begin with different turns, so there is no prompt; add `prompt`")
        return first[:shared], list(first[shared:]), list(second[shared:])
    first_text, second_text = text_of(chosen, "chosen"), text_of(rejected, "rejected")
    shared = _common(first_text, second_text)
    while shared > 0 and not (first_text[shared - 1].isspace()):
        shared -= 1
    prompt = first_text[:shared].rstrip()
    return (Message(role="user", content=prompt),), first_text[shared:], second_text[shared:]


def _common(first: Any, second: Any) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _label(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = words.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
    if found is None:
        raise RowError(f"`label` must be true or false, got {value!r}")
    return found
