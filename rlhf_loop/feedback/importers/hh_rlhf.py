r"""Anthropic's hh-rlhf: dialogues as text, `{"chosen", "rejected"}`, each `\n\nHuman: ...\n\nAssistant: ...`.

What both begin with is the prompt, the last turn of the assistant the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.importers import pairs
from rlhf_loop.feedback.importers.asked import holds_question, not_read
from rlhf_loop.feedback.importers.conversations import dialogue, prompt_before
from rlhf_loop.feedback.importers.fields import Place

RECOGNISES = r'rows of {"chosen", "rejected"}, each "\n\nHuman: ...\n\nAssistant: ..."'
REQUIRED = [("chosen", "rejected")]


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    texts = [row.get("chosen"), row.get("rejected")]
    return not holds_question(row) and all(
        isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text for text in texts
    )


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions and the preference of a row."""
    chosen, answer = prompt_before(dialogue(row.get("chosen"), "chosen"), "chosen")
    rejected, other = prompt_before(dialogue(row.get("rejected"), "rejected"), "rejected")
    if chosen != rejected:
        raise RowError("`chosen` and `rejected` differ before the last answer, so they answer no common prompt")
    return [*pairs.pair(row, place, chosen, answer, other), *not_read(row, pairs.KNOWN, place)]
