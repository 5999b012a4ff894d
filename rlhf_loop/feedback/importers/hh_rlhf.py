r"""Anthropic's hh-rlhf: dialogues as text, `{"chosen", "rejected"}`, each `\n\nHuman: ...\n\nAssistant: ...`.

What both begin with is the prompt, the last turn of the assistant the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.importers import pairs
from rlhf_loop.feedback.importers.asked import holds_question, not_read
from rlhf_loop.feedback.importers.conversations import prompt_before
from rlhf_loop.feedback.importers.fields import Place, text_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Message

RECOGNISES = r'hh-rlhf: rows of {"chosen", "rejected"}, each "\n\nHuman: ...\n\nAssistant: ..."'
REQUIRED = [("chosen", "rejected")]

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    texts = [row.get("chosen"), row.get("rejected")]
    return not holds_question(row) and all(
        isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text for text in texts
    )


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions and the preference of a row."""
    chosen, answer = prompt_before(_turns(row.get("chosen"), "chosen"), "chosen")
    rejected, other = prompt_before(_turns(row.get("rejected"), "rejected"), "rejected")
    if chosen != rejected:
        raise RowError("`chosen` and `rejected` differ before the last answer, so they answer no common prompt")
    return [*pairs.pair(row, place, chosen, answer, other), *not_read(row, pairs.KNOWN, place)]


def _turns(value: Any, name: str) -> list[Message]:
    pieces = _TURN.split(text_of(value, name).strip())
    if pieces[0].strip() or len(pieces) < 3:
        raise RowError(f"`{name}` must begin with a turn of Human:")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Message(role=roles[role], content=content.strip())
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
