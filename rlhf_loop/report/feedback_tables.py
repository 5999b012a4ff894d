"""Tables of what was asked, of the last validation, and of what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_loop.annotators import called
from rlhf_loop.feedback.validation_report import CHECKS
from rlhf_loop.report.data import Round, latest


def feedback_row(r: Round) -> dict[str, Any]:
    """What was asked at the end of a round, and what was waiting when it began."""
    asked = r.json("ask", "summary.json")
    by = asked.get("annotator")
    return {
        "round": r.number,
        "questions": asked.get("questions"),
        "answered": asked.get("answered"),
        "annotator": by if by in (None, "people") else called(by),
        "usable": r.pairs,
        "quarantined": r.quarantined,
    }


def validation(rounds: Sequence[Round]) -> dict[str, Any]:
    """The last validation: `{round, tables, examples, of_people}`; a table is `{title, columns, rows}`, a row (name,
    cells). `of_people`: pieces of feedback that no rule and no model gave."""
    checked = latest(rounds, lambda r: r if r.json("snapshot", "validation.json") else None)
    last = checked.json("snapshot", "validation.json") if checked else {}
    pairs = last.get("pairs")
    overall = {
        "pieces of feedback": last.get("total"),
        "usable": last.get("usable"),
        "quarantined": checked.quarantined if checked else None,
        "different pairs to learn from": pairs.get("train") if isinstance(pairs, dict) else pairs,
        "pairs of the judge": pairs.get("judge") if isinstance(pairs, dict) else None,
    }
    found = {CHECKS.get(name, _words(name)): count for name, count in (last.get("counts") or {}).items()}
    tables = [
        _table("All of it", {name: count for name, count in overall.items() if count is not None}),
        _table("Pieces that", {name: count for name, count in found.items() if count}),
        _table("Annotators", last.get("per_annotator") or {}),
        _table("Borrowed from other projects", last.get("borrowed") or {}),
        _table("Preferences without a pair", last.get("no_pair") or {}),
        *_critique_tables(last.get("critiques") or {}),
        *_next_message_tables(last.get("next_messages") or {}),
    ]
    examples = [
        f"{CHECKS.get(name, _words(name))}: {line}"
        for name, lines in (last.get("examples") or {}).items()
        for line in lines
    ]
    given = last.get("per_annotator") or {}
    return {
        "round": checked.number if checked else None,
        "tables": [table for table in tables if table["rows"]],
        "examples": examples,
        "of_people": sum(
            row.get("given", 0) for who, row in given.items() if not who.startswith(("simulated:", "llm:"))
        ),
    }


def _critique_tables(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there is to learn from critiques, and what was left out."""
    by = {f"critiques of {_SAID_BY.get(who, who)}": count for who, count in (counts.get("by_origin") or {}).items()}
    called = {f"answers called {what}": count for what, count in (counts.get("answers_called") or {}).items()}
    moved = counts.get("moved_to_another_answer")
    there = {**by, "edits": counts.get("edits"), **called, "critiques moved to another answer": moved}
    return [
        _table("To learn from critiques", {name: count for name, count in there.items() if count}),
        _table("Critiques left out", counts.get("left_out") or {}),
    ]


def _next_message_tables(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What users said next, which are no critiques, and what was left out."""
    there = {"messages": counts.get("messages"), "of these complaints": counts.get("complaints")}
    there["about answers of a policy"] = counts.get("of_stored_answers")
    return [
        _table("What users said next (implicit)", {name: count for name, count in there.items() if count is not None}),
        _table("Next messages left out", counts.get("left_out") or {}),
    ]


_SAID_BY = {"human": "people", "simulated": "a simulated annotator", "llm": "a model"}


def _table(title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts under their names, or one row of counts for each name."""
    nested = bool(values) and all(isinstance(row, dict) for row in values.values())
    columns = list(dict.fromkeys(key for row in values.values() for key in row)) if nested else []
    rows = [
        (name if nested else _words(name), [row.get(column, 0) for column in columns] if nested else [row])
        for name, row in values.items()
    ]
    return {"title": title, "columns": [_words(column) for column in columns], "rows": rows}


def _words(key: str) -> str:
    return key.replace("_", " ")
