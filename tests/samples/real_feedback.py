"""Feedback as people really have it, written to a file and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.intake.summary import ImportSummary
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Rating

PAIR = {"prompt": "Why?", "chosen": "Because of light.", "rejected": "No idea."}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(tmp_path: Path, *rows: Any, format_name: str = "auto") -> ImportResult:
    return read(write(tmp_path / "f.jsonl", list(rows)), format_name)


def imported(tmp_path: Path, path: Path, **options: Any) -> tuple[ImportSummary, list[Any]]:
    with Store.open(":memory:") as store:
        return import_file(store, path, **options), list(store.feedback())


TALK = [{"role": "user", "content": "What is 'tea'?"}, {"role": "assistant", "content": "Leaves."}]


def mlflow(name: str, *values: Any) -> dict[str, Any]:
    assessments = [
        {"assessment_id": f"a{n}", "assessment_name": name, "source": {"source_type": "HUMAN", "source_id": f"u{n}"},
         "create_time": "2026-08-01T10:00:00Z", "feedback": {"value": value}, "valid": True}
        for n, value in enumerate(values)
    ]  # fmt: skip
    return {"trace_id": f"tr-{name}", "request": {"question": "Q?"}, "response": "A.", "assessments": assessments}


def ratings(feedback: list[Any]) -> list[tuple[float, tuple[float, float]]]:
    return [(f.score, f.scale) for f in feedback if isinstance(f, Rating)]
