"""Files of feedback in the form that their tools write, as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Preference

FIXTURES = Path(__file__).parents[1] / "data" / "feedback_formats"


def fixture(name: str, format_name: str) -> ImportResult:
    """A file that is recognised as that format."""
    result = read(FIXTURES / name)
    assert result.format == format_name
    return result


def winners(result: ImportResult) -> list[tuple[str, str, str]]:
    """Verdict, first and second answer of every preference."""
    texts = {c.id: c.text for c in result.completions}
    return [(f.winner, texts[f.a_id], texts[f.b_id]) for f in result.feedback if isinstance(f, Preference)]


def of_kind(result: ImportResult, kind: type) -> list[Any]:
    return [f for f in result.feedback if isinstance(f, kind)]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of `FIXTURES`, or of one with a list that has a row a line."""
    lines = (FIXTURES / name).read_text().splitlines()
    return [json.loads(line.rstrip(",")) for line in lines if line not in ("[", "]")]


def read_row(tmp_path: Path, row: dict[str, Any]) -> ImportResult:
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    return read(tmp_path / "row.jsonl")


def with_texts(store: Store, tmp_path: Path, row: dict[str, Any], texts: list[dict[str, Any]]) -> list[Any]:
    (tmp_path / "said.jsonl").write_text(json.dumps(row))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    summary = import_file(store, tmp_path / "said.jsonl")
    assert (summary.rejected, "--texts FILE" in summary.examples[0].reason) == (1, True)
    import_file(store, tmp_path / "said.jsonl", texts=tmp_path / "texts.jsonl")
    return list(store.feedback())
