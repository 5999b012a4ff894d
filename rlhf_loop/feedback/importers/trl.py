"""TRL's data sets: preferences (`prompt/chosen/rejected`, or the prompt inside both answers) and unpaired feedback
(`prompt/completion/label`), standard or conversational, from JSON Lines, CSV or Parquet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers import pairs
from rlhf_loop.feedback.importers.fields import (
    Place,
    answer_of,
    completion_of,
    made_of,
    messages_of,
    prompt_of,
    text_of,
)
from rlhf_loop.feedback.importers.fields import optional_text as _optional_text
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Message, Thumb

RECOGNISES = 'TRL data sets: rows of {"chosen", "rejected"} or {"prompt", "completion", "label"}'
REQUIRED = [("chosen", "rejected"), ("prompt", "completion", "label")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    return any(all(key in row for key in keys) for keys in REQUIRED)


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
