"""Pairs of plain texts as rows of the store's tables, without the records in between: a third of the time.

Files of a million rows are mostly of this kind. Every row here is the one that `pairs.parse` and `table_rows.py` make;
a test holds them against each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from rlhf_loop.feedback.importers.fields import Place
from rlhf_loop.feedback.table_rows import TableRow, pair_key, storable

KEYS = {"id", "prompt", "chosen", "rejected", "annotator", "group"}

_quote: Callable[[str], str] = json.encoder.encode_basestring


def rows(row: Mapping[str, Any], place: Place) -> list[tuple[str, TableRow]] | None:
    """Table and row of the prompt, both completions and the preference; None where `pairs.parse` has to look at it:
    conversations, votes, critiques, and whatever is wrong with the row."""
    if not row.keys() <= KEYS:
        return None
    prompt, a, b = row.get("prompt"), row.get("chosen"), row.get("rejected")
    external_id, who, group = row.get("id"), row.get("annotator"), row.get("group")
    if type(external_id) is int:
        external_id = str(external_id)
    for text in (prompt, a, b):
        if type(text) is not str or "\0" in text:
            return None
    for text in (external_id, who, group):
        if text is not None and (type(text) is not str or "\0" in text):
            return None
    if any(storable(text) != text for text in (place.annotator.id, place.file)):
        return None
    try:
        return _rows(prompt, a, b, external_id or None, who or None, group or None, place)  # type: ignore[arg-type]
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def _rows(
    prompt: str, a: str, b: str, external_id: str | None, who: str | None, group: str | None, place: Place
) -> list[tuple[str, TableRow]]:
    quoted, quoted_a, quoted_b = _quote(prompt), _quote(a), _quote(b)
    external = "null" if external_id is None else _quote(external_id)
    annotator, kind = (place.annotator.id, place.annotator.kind) if who is None else (who, "HUMAN")
    named = annotator != place.annotator.id or kind != place.annotator.kind or not annotator.startswith("import:")
    by = _quote(annotator)
    file = _quote(place.file)

    content = f'[{{"content": {quoted}, "role": "user"}}]'
    prompt_id = _id(f'["prompt", {content}, {"null" if group is None else _quote(group)}]')
    a_id = _id(f'["import", "{prompt_id}", {quoted_a}]')
    b_id = _id(f'["import", "{prompt_id}", {quoted_b}]')
    id = _id(
        f'["import", {external}, {by if named else "null"}, "preference", "{prompt_id}", "{a_id}", "{b_id}", null, []]'
    )
    group = group or prompt_id
    prompt_body = (
        f'{{"id":"{prompt_id}","messages":[{{"role":"user","content":{quoted}}}],"group":{_quote(group)},'
        f'"split":"train","reference":null,"tags":[],"source":{file}}}'
    )
    body = (
        f'{{"id":"{id}","prompt_id":"{prompt_id}","annotator":{{"id":{by},"kind":"{kind}"}},"created_at":0.0,"round":0,'
        f'"comment":null,"rubric_version":null,"lead_time":null,"source":{file[:-1]}:{place.line}",'
        f'"external_id":{external},"supersedes":null,"kind":"preference","a_id":"{a_id}","b_id":"{b_id}","winner":"a",'
        f'"strength":null,"shown_order":null,"blind":true}}'
    )
    pair = pair_key(a_id, b_id)
    return [
        ("prompts", (prompt_id, "train", group, prompt, prompt_body)),
        ("completions", _completion(a_id, prompt_id, a)),
        ("completions", _completion(b_id, prompt_id, b)),
        ("feedback", (id, "preference", prompt_id, None, a_id, b_id, pair, annotator, 0, 0.0, None, body)),
    ]


def _completion(id: str, prompt_id: str, text: str) -> TableRow:
    body = (
        f'{{"id":"{id}","prompt_id":"{prompt_id}","policy":"import","round":0,"sample":0,"seed":0,"sampling":{{}},'
        '"finish_reason":"stop","tokens":0,"parent":null,"critique":null}'
    )
    return (id, prompt_id, "import", 0, None, text, body)


def _id(parts: str) -> str:
    """As `records.stable_id` makes it of parts whose JSON this is."""
    return sha256(parts.encode()).hexdigest()[:24]
