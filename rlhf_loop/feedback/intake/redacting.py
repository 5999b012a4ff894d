"""Rows without personal data: every text of a row is redacted before records, and their ids, are made of it.

Who said something must stay told apart: a name that would be redacted becomes a pseudonym of its own instead.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.times import is_time
from rlhf_loop.feedback.privacy.redaction import Redactor

WHO = ("annotator", "completed_by", "judge", "email", "author")
"""Keys of names. Those that end in `id`, as ids and references do, are taken as names too."""


def redact_row(values: dict[str, Any], redactor: Redactor) -> tuple[dict[str, Any], Counter[str]]:
    """The row with its texts redacted, however deep they are, and how often what was found."""
    found: Counter[str] = Counter()
    return _redact(values, "", redactor, found), found


def _redact(value: Any, key: str, redactor: Redactor, found: Counter[str]) -> Any:
    if isinstance(value, str):
        inside = decoded(value) if value[:2].strip()[:1] in ("[", "{", "'") else value
        if isinstance(inside, (dict, list)):  # a number in it must not become a placeholder outside of quotes
            before = sum(found.values())
            redacted = _redact(inside, key, redactor, found)
            return value if sum(found.values()) == before else json.dumps(redacted, ensure_ascii=False, default=str)
        text, counts = redactor.redact(value)
        if not counts or is_time(value):
            return value
        found.update(counts)
        return pseudonym(value) if _is_name(key) else text
    if isinstance(value, dict):
        redacted = {name: _redact(inner, str(name), redactor, found) for name, inner in value.items()}
        if "token_ids" in value and redacted.get("text") != value.get("text"):  # they would still say it
            redacted["token_ids"] = None
        return redacted
    if isinstance(value, list):
        return [_redact(inner, key, redactor, found) for inner in value]
    return value


def pseudonym(name: str) -> str:
    """One that is always the same for a name. Who knows the name can find the pseudonym, not the other way round."""
    return "person-" + hashlib.sha256(f"rlhf-loop {name}".encode("utf-8", "replace")).hexdigest()[:12]


def _is_name(key: str) -> bool:
    return key in WHO or key.lower().endswith("id")
