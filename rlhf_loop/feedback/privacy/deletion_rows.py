"""What is to leave, and a file without it: tables, matrices, JSON and logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_loop.files import write_json, write_text
from rlhf_loop.files.damage import damaged
from rlhf_loop.record_files import nested_columns, write_table

ROWS = (".parquet", ".json", ".npy")
"""Ends of the names of files that rows and entries are taken out of."""

_PROMPT_IDS = ("id", "prompt_id", "said_in")
_COMPLETION_IDS = ("id", "completion_id", "a_id", "b_id", "chosen_id", "rejected_id", "parent", "said_of")
_KNOWN = {"id", "prompt_id", "completion_id", "feedback_ids"}

_SHOWN = 40  # characters that a message shows of a longer text
_QUOTED = 16  # characters: shorter texts are everybody's


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What is to leave: ids by kind, and texts."""

    prompts: set[str]
    completions: set[str]
    feedback: set[str]
    texts: set[str]
    comments: set[str]  # what was said about answers: those of the texts, and tags
    annotators: set[str]

    def named_in(self, text: str) -> bool:
        """Whether `text` is one of the ids, or holds one that is long enough not to be a word."""
        words = [*re.findall(r"[\w.:-]{8,}", text), *re.findall(r"[\w.:-]+@[\w.-]+", text)]  # also what was borrowed
        return self._is_id(text) or any(self._is_id(word) or self._is_id(word.rstrip(".:")) for word in words)

    def repeated_in(self, text: str) -> bool:
        """Whether `text`, plain or as JSON, holds one of the texts that are long enough to be somebody's own."""
        return any(mine in text for mine in self._quotable)

    def begun_in(self, line: str) -> bool:
        """Whether a line names one of the ids, or holds the beginning of one of these texts."""
        return self.named_in(line) or any(beginning in line for beginning in self._beginnings)

    def is_about(self, ids: Iterable[str], text: str) -> bool:
        """Whether an endpoint's answer speaks of what goes, or repeats it."""
        return any(self.named_in(id) for id in ids) or self.repeated_in(text)

    def is_critique(self, text: object) -> bool:
        """Whether a revision that carries this critique answers to one that goes; short ones are everybody's."""
        return isinstance(text, str) and len(text) >= _QUOTED and self.said(text)

    def said(self, critique: str) -> bool:
        """Whether a critique is a comment that goes, or holds one beside what was said of parts of the answer: each in
        a line of its own, after the words that it is about."""
        if critique in self.comments:
            return True
        of_parts = '": ' in critique
        return of_parts and any(critique.startswith(f'{one}\n"') or f'": {one}' in critique for one in self.comments)

    @cached_property
    def _quotable(self) -> set[str]:
        """The texts that are long enough, as they are and as they stand in JSON."""
        long = {text for text in self.texts if len(text) >= _QUOTED}
        return long | {json.dumps(text, ensure_ascii=escaped)[1:-1] for text in long for escaped in (False, True)}

    @cached_property
    def _beginnings(self) -> set[str]:
        """Of these texts, as much as messages show of them at least, as it is and as it stands in JSON."""
        return {text[:_SHOWN].rstrip("\\") for text in self._quotable} - {""}

    def _is_id(self, word: str) -> bool:
        return word in self.feedback or word in self.completions or word in self.prompts


def redact(path: Path, deletion: Deletion, write: bool) -> int:
    """How many rows or entries of a file go or change; `write`: and writes it anew without them.

    Half a table of an unfinished step counts as one row, since nobody can tell. Raises `UserError` for any other that
    cannot be read.
    """
    if path.suffix == ".parquet" and path.is_file():
        try:
            return _redact_table(path, deletion, write)
        except pa.ArrowInvalid as error:
            if any(part.endswith((".partial", ".old")) for part in path.parts):
                return 1
            raise damaged(path, f"{error}, so what is in it cannot be deleted by user") from None
    if path.suffix == ".npy" and path.is_file():
        return _redact_vectors(path, deletion, write)
    ours = path.name == "manifest.json" or path.name.endswith(".arguments.json")  # no texts in them
    return _redact_json(path, deletion, write) if path.suffix == ".json" and not ours and path.is_file() else 0


def redact_log(path: Path, deletion: Deletion) -> int:
    """Takes the lines out of a job's log that quote a text or, as errors do, its beginning; gives their number."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    left = [line for line in lines if not deletion.begun_in(line)]
    if len(left) < len(lines):
        write_text(path, "".join(left))
    return len(lines) - len(left)


def _redact_table(path: Path, deletion: Deletion, write: bool) -> int:
    """Of a Parquet file."""
    table = pq.read_table(path)
    nested = nested_columns(table)
    kept, count = [], 0
    for row in table.to_pylist():
        new = _redacted_row(row, nested, deletion) if _KNOWN & row.keys() else _without_texts(row, deletion)
        count += new != row
        if new is not None:
            kept.append(new)
    if count and write:
        write_table(path, pa.Table.from_pylist(kept, schema=table.schema))
    return count


def _redact_vectors(path: Path, deletion: Deletion, write: bool) -> int:
    """Of a matrix whose rows the table beside it names: zeros in place of what goes, before the table forgets it."""
    table = path.with_suffix(".parquet")
    if not table.exists():
        return 0
    named = pq.read_table(table).to_pylist()
    rows = [row["row"] for row in named if "row" in row and _redacted_row(row, set(), deletion) is None]
    if rows and write:
        matrix = np.load(path)
        matrix[rows] = 0
        unfinished = path.with_name(path.name + ".partial")
        with unfinished.open("wb") as file:
            np.save(file, matrix)
        unfinished.replace(path)
    return len(rows)


def _redacted_row(row: dict[str, Any], nested: set[str], deletion: Deletion) -> dict[str, Any] | None:
    """The row without what goes, or None when it goes."""
    if any(row.get(name) in deletion.prompts for name in _PROMPT_IDS):
        return None
    if any(row.get(name) in deletion.completions for name in _COMPLETION_IDS) or row.get("id") in deletion.feedback:
        return None
    new = dict(row)
    if isinstance(row.get("feedback_ids"), str) and "feedback_ids" in nested:
        before: list[str] = json.loads(row["feedback_ids"])
        after = [id for id in before if id not in deletion.feedback]
        if before and not after:
            return None
        if after != before:
            new["feedback_ids"] = json.dumps(after, ensure_ascii=False)
            if isinstance(row.get("critiques"), str):
                new |= _without_critiques(row, deletion)
    if "feedback_ids" not in row and deletion.is_critique(row.get("critique")):
        new["critique"] = None
    return new


def _without_critiques(row: dict[str, Any], deletion: Deletion) -> dict[str, str]:
    """The cells of a row's critiques without those that nobody says any more; what others say too stays."""
    critiques: list[str] = json.loads(row["critiques"])
    ids: list[list[str]] = json.loads(row.get("critique_ids") or "[]")
    if not ids:  # of an earlier version, which did not note who said which: what was said goes, whoever said it too
        left = [text for text in critiques if not deletion.said(text)]
        return {"critiques": json.dumps(left, ensure_ascii=False)}
    after = [[id for id in of if id not in deletion.feedback] for of in ids]
    said = [(text, of) for text, of in zip(critiques, after, strict=True) if of]
    return {
        "critiques": json.dumps([text for text, _ in said], ensure_ascii=False),
        "critique_ids": json.dumps([of for _, of in said], ensure_ascii=False),
    }


def _without_texts(row: dict[str, Any], deletion: Deletion) -> dict[str, Any] | None:
    """Of a file that is not ours, such as a trainer's log of completions: None where the row repeats a text."""
    cells = [cell if isinstance(cell, str) else json.dumps(cell, default=str) for cell in row.values()]
    return None if deletion.repeated_in("\n".join(cells)) else row


def _redact_json(path: Path, deletion: Deletion, write: bool) -> int:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return 0  # not ours to judge: the step that reads it says so
    new, count = _redacted_value(value, deletion)
    if count and write:
        write_json(path, new)
    return count


def _redacted_value(value: Any, deletion: Deletion) -> tuple[Any, int]:
    """A JSON value without entries about what goes, and how many went.

    Refusals of validation keep their id, and lose the reason, which may quote; the counts stay.
    """
    if isinstance(value, list):
        parts, count = [], 0
        for part in value:
            names = isinstance(part, dict) and any(deletion.named_in(v) for v in part.values() if isinstance(v, str))
            quotes = isinstance(part, str) and deletion.named_in(part)
            if names and "reason" in part and part["reason"] != "deleted":
                parts.append({**part, "reason": "deleted"})
            elif not names and not quotes:
                new, inner = _redacted_value(part, deletion)
                parts.append(new)
                count += inner
                continue
            elif names and "reason" in part:
                parts.append(part)
                continue
            count += 1
        return parts, count
    if isinstance(value, dict):
        kept, count = {}, 0
        for name, part in value.items():
            if name == "per_annotator" and isinstance(part, dict):
                kept[name] = {who: numbers for who, numbers in part.items() if who not in deletion.annotators}
                count += kept[name] != part
                continue
            kept[name], inner = _redacted_value(part, deletion)
            count += inner
        return kept, count
    return value, 0
