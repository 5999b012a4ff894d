"""What Langfuse, MLflow and Phoenix log, with what was said of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from samples.formats import fixture, of_kind, read_row, rows_of, with_texts

from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Critique, Edit, Rating, Thumb


def test_langfuse_traces_with_scores() -> None:
    result = fixture("langfuse_traces.jsonl", "langfuse")
    texts = {c.id: c.text for c in result.completions}
    assert [
        (texts[t.completion_id], t.label, t.annotator.id, t.annotator.kind, t.comment) for t in of_kind(result, Thumb)
    ] == [
        ("Air scatters blue light.", True, "u-1", "HUMAN", "Just right."),  # users' feedback is the trace's user's
        ("Air scatters blue light.", False, "a-7", "HUMAN", None),
        ("Why is the sky blue?", True, "a-7", "HUMAN", None),  # of an observation
    ]
    (rating,), (critique,), (edit,) = (of_kind(result, kind) for kind in (Rating, Critique, Edit))
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.75, (0.0, 1.0), "LLM")
    assert (critique.comment, critique.annotator.id) == ("It could name Rayleigh.", "a-7")
    assert (edit.edited_completion, edit.external_id) == ("Air scatters blue light the most.", "s-7")
    assert result.notes == {
        "hallucination says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "toxicity says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "tone says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "a score is about a step that holds no prompt and answer, or is not in the file": 1,
    }
    assert [(m["content"]) for m in result.prompts[-1].messages] == ["Name a tree."]  # of the root observation
    assert [(r.line, "GET /api/public/traces/ID" in r.reason) for r in result.refused] == [(3, True)]


def test_langfuse_trace_as_its_page_downloads_it() -> None:
    result = fixture("langfuse_trace_download.json", "langfuse")
    assert [t.label for t in of_kind(result, Thumb)] == [True]
    assert [c.text for c in result.completions] == ["A wren."]


def check_export(result: ImportResult, second: str) -> None:
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[t.completion_id], t.label, t.annotator.id) for t in of_kind(result, Thumb)] == [
        ("Air scatters blue light.", False, "u-5"),
        (second, True, "u-5"),
    ]
    (rating,), (critique,) = of_kind(result, Rating), of_kind(result, Critique)
    assert (rating.score, rating.annotator.kind, rating.created_at) == (0.5, "CODE", 1729598400.0)
    assert (critique.comment, critique.annotator.id) == ("Name the scattering.", "ann@example.org")
    assert (critique.created_at, critique.external_id) == (1729670400.0, "c-1")
    assert result.notes == {"tone says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1}


def test_langfuse_export_of_many_traces() -> None:
    check_export(fixture("langfuse_export.jsonl", "langfuse"), '{"colour": "blue"}')  # a JSON that was the answer


def test_langfuse_export_of_many_traces_as_csv(tmp_path: Path) -> None:
    rows = rows_of("langfuse_export.jsonl")
    rows[1]["output"] = "Blue."
    with (tmp_path / "traces.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(rows[0])
        for row in rows:
            cells = [
                "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()
            ]
            writer.writerow(cells)
    result = read(tmp_path / "traces.csv")
    assert result.format == "langfuse"
    check_export(result, "Blue.")


def test_langfuse_scores_without_their_trace_are_refused_with_the_remedy(tmp_path: Path) -> None:
    result = fixture("langfuse_scores.jsonl", "langfuse")
    for trace, refused in zip(("t-9", "t-10", "t-11"), result.refused, strict=True):
        assert f"about trace {trace}, whose texts are not in the file; export the traces" in refused.reason
    (row, *_) = rows_of("langfuse_scores.jsonl")
    row |= {"value": 0, "trace": {"userId": "u-1", "input": "Name a tree.", "output": "Blue."}}
    assert [t.label for t in of_kind(read_row(tmp_path, row), Thumb)] == [False]


def test_mlflow_assessments_are_about_the_root_span() -> None:
    result = fixture("mlflow_traces.jsonl", "mlflow")
    assert result.prompts[0].messages == ({"role": "user", "content": "Why is the sky blue?"},)
    assert result.completions[0].text == "Air."
    (thumb,), (rating,), (edit,) = of_kind(result, Thumb), of_kind(result, Rating), of_kind(result, Edit)
    assert (thumb.label, thumb.comment, thumb.annotator.id) == (True, "Clear.", "ann")
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.9, (0.0, 1.0), "LLM")
    assert edit.edited_completion == "Air scatters blue light the most."
    assert result.notes == {"an assessment holds an error in place of a value": 1}


def test_phoenix_annotations_of_spans(store: Store, tmp_path: Path) -> None:
    result = fixture("phoenix_spans.jsonl", "phoenix")
    (thumb,), (rating,), (critique,) = (of_kind(result, kind) for kind in (Thumb, Rating, Critique))
    assert (thumb.label, thumb.comment, thumb.annotator.id) == (True, "Short and right.", "VXNlcjox")
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.75, (0.0, 1.0), "LLM")
    assert (critique.comment, thumb.created_at) == ("It could name Rayleigh.", 1785578700.0)
    assert [c.text for c in result.completions] == ["Air scatters blue light.", "Rose."]
    span, *_ = rows_of("phoenix_spans.jsonl")
    annotation = {key: value for key, value in span["annotations"][0].items() if key != "name"}
    flat = {"annotation_name": "correctness", "result.label": "correct", "result.score": 1.0, **annotation}
    del flat["result"]
    assert [t.label for t in with_texts(store, tmp_path, flat, [span])] == [True]
    joined = {**flat, "context.span_id": "s1", "attributes.input.value": "Why?", "attributes.output.value": "Air."}
    assert [t.label for t in of_kind(read_row(tmp_path, joined), Thumb)] == [True]
    example = {
        "input": {"question": "Why?"},
        "output": {"answer": "Air."},
        "metadata": {"annotations": {"helpfulness": [{"label": None, "score": 0, "annotator_kind": "HUMAN"}]}},
    }
    assert [r.score for r in of_kind(read_row(tmp_path, example), Rating)] == [0.0]


def test_mlflow_tables_of_search_traces(tmp_path: Path) -> None:
    result = fixture("mlflow_table.jsonl", "mlflow")
    (thumb,), (rating,) = of_kind(result, Thumb), of_kind(result, Rating)
    assert (thumb.label, thumb.created_at, rating.score, rating.scale) == (True, 1785578400.25, 0.25, (0.0, 1.0))
    assert [m["role"] for m in result.prompts[0].messages] == ["system", "user"]
    assert [note for note in result.notes if note.startswith("is_toxic says neither")]
    (row,) = rows_of("mlflow_table.jsonl")
    for cells in (json.dumps, repr):  # as pandas writes objects into CSV
        with (tmp_path / "traces.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [list(row), [cells(v) if isinstance(v, (dict, list)) else v for v in row.values()]]
            )
        assert [t.label for t in of_kind(read(tmp_path / "traces.csv"), Thumb)] == [True]


@pytest.mark.parametrize(
    ("request_", "response", "turns", "answer", "notes"),
    [
        ({"question": "Q?"}, "A.", 1, "A.", []),
        ({"question": "Q?", "user_tier": "gold"}, "A.", 1, "A.", ["the further input user_tier is left out"]),
        ({"question": "Q?", "context": "C."}, {"answer": "A.", "sources": [1]}, 1, "A.", []),
        ({"messages": [["user", "Q?"]]},
         {"messages": [{"type": "human", "content": "Q?"}, {"type": "ai", "content": "A."}]}, 1, "A.", []),
        ({"messages": [{"role": "user", "content": "Q?"}]},
         {"messages": [{"role": "user", "content": "Q?"},
                       {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                       {"role": "tool", "content": "5"}, {"role": "assistant", "content": "A."}]},
         1, "A.", ["calls of tools are left out of a conversation"]),
        ({"messages": [{"role": "user", "content": "Q?"}]},
         {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                       {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}, 3, "A.", []),
        ({"input": [{"role": "user", "content": "Q?"}]},
         {"output": [{"type": "reasoning", "summary": []},
                     {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A."}]}]},
         1, "A.", []),
        ({"contents": [{"role": "user", "parts": [{"text": "Q?"}]}]},
         {"candidates": [{"content": {"role": "model", "parts": [{"text": "A."}]}}]}, 1, "A.", []),
        ("Q?", {"generations": [[{"text": "A."}]]}, 1, "A.", []),
        ("Q?", {"role": "assistant", "type": "message", "content": [{"type": "text", "text": "A."}]}, 1, "A.", []),
        ("Q?", '{"colour": "blue"}', 1, '{"colour": "blue"}', []),
    ],
)  # fmt: skip
def test_what_frameworks_log_is_read(
    tmp_path: Path, request_: Any, response: Any, turns: int, answer: str, notes: list[str]
) -> None:
    result = read_row(tmp_path, {"trace_id": "t", "request": request_, "response": response, "assessments": []})
    assert result.refused == []
    assert (len(result.prompts[0].messages), result.completions[0].text) == (turns, answer)
    assert [note for note in result.notes if note != "a trace has no assessment"] == notes


def test_mlflow_trace_without_an_output_has_no_answer(tmp_path: Path) -> None:
    span = {"parent_span_id": None, "attributes": {"mlflow.spanInputs": '"Why?"', "mlflow.spanOutputs": "null"}}
    said = {"assessment_name": "correctness", "feedback": {"value": False}, "source": {"source_type": "HUMAN"}}
    row = {"info": {"trace_id": "1", "assessments": [said]}, "data": {"spans": [span]}}
    assert read_row(tmp_path, row).completions == []
