"""What Argilla, Label Studio and Potato export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples.formats import fixture, of_kind, read_row, rows_of, winners, with_texts

from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Edit, Preference, Rating, Skip, Thumb


def test_argilla_records_of_both_versions() -> None:
    result = fixture("argilla_v2.json", "argilla")
    assert winners(result) == [
        ("a", "Air scatters blue light.", "It is not."),
        ("tie", "Air scatters blue light.", "It is not."),
    ]
    first, second = of_kind(result, Preference)
    assert (first.comment, second.comment) == ("It names the cause.", None)
    assert first.annotator.id == "6ae2bc2e-24a5-4f4c-b0b4-2b1c6e4f0a11"
    (rating,) = of_kind(result, Rating)
    (edit,) = of_kind(result, Edit)
    assert (rating.score, rating.scale, edit.edited_completion) == (2.0, (1.0, 5.0), "Blue")
    assert result.notes["a record has no response yet"] == 1
    assert [count for note, count in result.notes.items() if "drafts or discarded" in note] == [2]
    old = fixture("argilla_v1.jsonl", "argilla")
    assert winners(old) == [("a", "Air scatters blue light.", "It is not.")]
    assert len(of_kind(old, Skip)) == 1
    (thumb,) = of_kind(old, Thumb)
    assert (thumb.label, thumb.comment, thumb.external_id) == (True, "Short and right.", "e2")


def test_label_studio_annotations() -> None:
    result = fixture("label_studio.json", "label-studio")
    assert result.refused == []
    assert winners(result) == [
        ("b", "Because air", "Air scatters blue light the most."),
        ("tie", "Because air", "Air scatters blue light the most."),
    ]
    preference = of_kind(result, Preference)[0]
    assert (preference.comment, preference.annotator.id) == ("The left one stops half way.", "3")
    assert (preference.lead_time, preference.created_at) == (14.25, 1710014400.5)
    (skip,) = of_kind(result, Skip)
    assert skip.annotator.id == "4"
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[r.completion_id], r.score, r.scale, r.annotator.id) for r in of_kind(result, Rating)] == [
        ("Air scatters blue light the most.", 4.0, (1.0, 5.0), "5"),  # one of two answers, by its tag
        ("An oak.", 4.0, (1.0, 5.0), "3"),
        ("Blue.", 7.0, (1.0, 7.0), "3"),  # of a dialogue the last turn, on a Likert scale
    ]
    assert [(texts[t.completion_id], t.label) for t in of_kind(result, Thumb)] == [("An oak.", True)]
    assert result.notes == {
        "an annotation holds no verdict": 1,
        "the answer to the question hallucination is no verdict that is understood": 1,  # no
        "the answer to the question fails_to_follow is no verdict that is understood": 1,  # yes
        "the scale of likert_scale is not in the file; it is taken as 1 to 7 (or say it: --scale NAME=LOW:HIGH)": 1,
    }


def test_label_studio_json_min_says_the_same_as_json() -> None:
    result = fixture("label_studio_min.json", "label-studio")
    assert result.refused == []
    (preference,), (rating,), (thumb,) = (of_kind(result, kind) for kind in (Preference, Rating, Thumb))
    assert preference.id == of_kind(fixture("label_studio.json", "label-studio"), Preference)[0].id
    assert (preference.winner, preference.comment, preference.lead_time) == (
        "b",
        "The left one stops half way.",
        14.25,
    )
    assert (rating.score, rating.comment, rating.annotator.id) == (4.0, "Short.\nRight.", "ann@example.org")
    assert (thumb.label, thumb.created_at) == (True, 1710057600.0)
    assert result.notes == {
        "the answer to the question faults is no verdict that is understood": 1,
        "a task has no annotation yet": 1,
        "the field source is not read": 1,
    }


def test_label_studio_json_min_without_a_telling_order(tmp_path: Path) -> None:
    (row, *_) = rows_of("label_studio_min.json")
    result = read_row(tmp_path, {name: row[name] for name in sorted(row)})
    assert [f.winner for f in of_kind(result, Preference)] == ["b"]
    result = read_row(tmp_path, {"id": 5, **row})
    assert [f.winner for f in of_kind(result, Preference)] == ["b"]


@pytest.mark.parametrize(
    ("question", "answer", "label"),
    [("helpful", "Yes", True), ("is_correct", "No", False), ("not_helpful", "Yes", None), ("is_code", "Yes", None),
     ("toxic", "No", None), ("verdict", "Bad", False)],
)  # fmt: skip
def test_label_studio_yes_and_no_count_where_the_question_asks_for_something_good(
    tmp_path: Path, question: str, answer: str, label: bool | None
) -> None:
    said = {"from_name": question, "to_name": "response", "type": "choices", "value": {"choices": [answer]}}
    data = {"prompt": "Name a tree.", "response": "Oak."}
    result = read_row(
        tmp_path, {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": 3, "result": [said]}]}
    )
    assert [t.label for t in of_kind(result, Thumb)] == ([] if label is None else [label])


def test_label_studio_pairwise_with_nothing_selected_is_no_tie(tmp_path: Path) -> None:
    (row, *_) = rows_of("label_studio.json")
    row["annotations"] = row["annotations"][:1]
    row["annotations"][0]["result"][0]["value"]["selected"] = "none"
    result = read_row(tmp_path, row)
    assert result.feedback == []
    assert "an annotation holds no verdict, only a text about both answers" in result.notes


def test_a_bare_1_of_a_tutorial_is_refused_for_it_may_be_the_worst_or_the_best(tmp_path: Path) -> None:
    row = {"input": "Why?", "response": "Light."}
    said = [{"feedback": 1}, {"feedback": 1, "scale": [1, 5]}, {"feedback": 1, "scale": [0, 1]}, {"feedback": 0}]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps({**row, **one}) + "\n" for one in said))
    result = read(path)
    assert [refused.line for refused in result.refused] == [1]
    assert 'add "scale": [1, 5] or [0, 1]' in result.refused[0].reason
    assert [r.score for r in of_kind(result, Rating)] == [1.0]
    assert [t.label for t in of_kind(result, Thumb)] == [True, False]


def test_potato_annotations() -> None:
    result = fixture("potato.jsonl", "potato")
    assert winners(result) == [("b", "It is not.", "Air scatters blue light."), ("a", "Oak.", "Rose.")]
    first, second = of_kind(result, Preference)
    assert (first.comment, first.annotator.id, second.annotator.id) == ("It gives the cause.", "ann", "bob")
    assert [(r.score, r.scale) for r in of_kind(result, Rating)] == [(4.0, (1.0, 5.0))]
    assert of_kind(result, Thumb) == []  # is_toxic: no
    assert result.notes["spans that annotators marked are left out"] == 1


def test_potato_names_instances_whose_texts_stand_elsewhere(store: Store, tmp_path: Path) -> None:
    state = {
        "i1": [[{"schema": "preference", "name": "selection"}, "tie"]],
        "i2": [[{"schema": "helpful", "name": "yes"}, "true"], [{"schema": "note", "name": "text_box"}, "Short."]],
    }
    texts = [
        {"id": "i1", "prompt": "Why?", "responses": ["Air.", "Light."]},
        {"id": "i2", "text": "Who?", "response": "I."},
    ]
    said = with_texts(store, tmp_path, {"user_id": "ann", "instance_id_to_label_to_value": state}, texts)
    assert [(f.kind, getattr(f, "winner", None), getattr(f, "label", None), f.comment) for f in said] == [
        ("preference", "tie", None, None),
        ("thumb", None, True, "Short."),
    ]


def test_potato_tables(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text("instance_id,user_id,preference.selection,prompt\n1,ann,A,x\n")
    assert "--texts FILE" in read(path).refused[0].reason


def test_argilla_records_as_its_data_sets_hold_them(tmp_path: Path) -> None:
    result = fixture("argilla_flat.jsonl", "argilla")
    assert [w for w, _, _ in winners(result)] == ["a", "tie"]
    assert [f.comment for f in of_kind(result, Preference)] == ["A is a tree", None]
    assert [s.annotator.id for s in of_kind(result, Skip)] == ["u-2"]
    assert result.notes == {"a draft of a response is left out": 1, "the field m is not read": 1}
    pq.write_table(pa.Table.from_pylist(rows_of("argilla_flat.jsonl")[1:]), tmp_path / "hub.parquet")
    assert [w for w, _, _ in winners(read(tmp_path / "hub.parquet"))] == ["tie"]


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (["response_3", "response_1", "response_2"], "312"),
        ([{"value": f"response_{n}", "rank": rank} for rank, n in enumerate((3, 1, 2), 1)], "312"),
        ("response_3", "3"),
    ],
)  # fmt: skip
def test_argilla_rankings_are_preferences_for_each_two(tmp_path: Path, value: Any, order: str) -> None:
    fields = {"prompt": "A tree?", "response_1": "Elm.", "response_2": "Cat.", "response_3": "Oak."}
    row = {
        "id": 1,
        "fields": fields,
        "responses": {"ranking": [{"value": value, "user_id": "u", "status": "submitted"}]},
    }
    found = {(a, b) if w == "a" else (b, a) for w, a, b in winners(read_row(tmp_path, row)) if w in "ab"}
    best = {("Oak.", "Elm."), ("Oak.", "Cat.")}
    assert found == (best | {("Elm.", "Cat.")} if order == "312" else best)


def label_studio(data: dict[str, Any], *results: dict[str, Any]) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": 3, "result": list(results)}]}


def test_label_studio_templates(tmp_path: Path) -> None:
    items = [{"id": "x", "title": "M", "body": "Elm."}, {"id": "y", "title": "N", "body": "Oak."}]
    rank = {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": ["y", "x"]}}
    data = {"task": "Rank these.", "prompt": "A tree?", "items": items}
    assert winners(read_row(tmp_path, label_studio(data, rank))) == [("b", "Elm.", "Oak.")]
    rank["value"] = {"ranker": {"relevant_results": ["y"], "biased_results": ["x"]}}
    assert any("groups of a ranker" in note for note in read_row(tmp_path, label_studio(data, rank)).notes)
    grade = {"from_name": "rating", "to_name": "summary", "type": "rating", "value": {"rating": 4}}
    grading = label_studio({"document": ["One.", "Two."], "summary": "Both."}, grade)
    result = read_row(tmp_path, grading)
    assert [(r.score, r.scale) for r in of_kind(result, Rating)] == [(4.0, (1.0, 5.0))]
    assert result.prompts[0].messages[0]["content"] == "One.\n\nTwo."
    text = {"from_name": "instruction", "to_name": "prompt", "type": "textarea", "value": {"text": ["Oak."]}}
    (prompt,) = read_row(tmp_path, label_studio({"prompt": "A tree?"}, text)).prompts
    assert (prompt.messages[0]["content"], prompt.reference) == ("A tree?", "Oak.")


def test_label_studio_csv() -> None:
    result = fixture("label_studio.csv", "label-studio")
    assert [w for w, _, _ in winners(result)] == ["tie", "b", "b"]
    assert [f.comment for f in of_kind(result, Preference)] == [None, "A cat is no bird.", None]
    assert (result.feedback[0].annotator.id, result.feedback[0].lead_time) == ("2", 12.5)
    assert result.notes == {"a task has no annotation yet": 1}


ANSWERS = {"prompt": "Why?", "answer1": "Light.", "answer2": "Air."}


def chosen_in_label_studio(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    said = {"from_name": question, "to_name": "prompt", "type": "choices", "value": {"choices": [chosen]}}
    return {"id": 1, "data": data, "annotations": [{"id": 5, "completed_by": 1, "result": [said]}]}


def argilla(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": "1", "fields": data, "responses": {question: [{"value": chosen, "user_id": "u"}]}}


def potato(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"instance_id": "1", "user_id": "u", "labels": {question: {chosen: "true"}}, "item": data}


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_a_question_for_the_worse_answer_prefers_the_other_and_one_for_something_bad_is_left_out(
    tmp_path: Path, tool: Any
) -> None:
    better, worse, toxic = (
        read_row(tmp_path, tool(question, "answer1", ANSWERS)) for question in ("best", "worse_answer", "more_toxic")
    )
    assert [(f.winner, a, b) for f, (_, a, b) in zip(of_kind(better, Preference), winners(better), strict=True)] == [
        ("a", "Light.", "Air.")
    ]
    assert [f.winner for f in of_kind(worse, Preference)] == ["b"]
    assert of_kind(toxic, Preference) == []
    assert any("more_toxic asks for something bad" in note for note in toxic.notes)


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_the_best_of_three_says_nothing_of_the_other_two(tmp_path: Path, tool: Any) -> None:
    result = read_row(tmp_path, tool("best", "answer2", {**ANSWERS, "answer3": "Dust."}))
    assert sorted(winners(result)) == [("a", "Air.", "Dust."), ("b", "Light.", "Air.")]


def test_best_and_worst_of_one_instance_agree(tmp_path: Path) -> None:
    row = potato("scaling", "x", ANSWERS) | {"labels": {"scaling": {"best": "answer1", "worst": "answer2"}}}
    assert [w for w, _, _ in winners(read_row(tmp_path, row))] == ["a", "a"]


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_labels_that_are_numbers_are_ratings_of_one_answer(tmp_path: Path, tool: Any) -> None:
    rows = [tool("quality", number, {"prompt": f"Why {number}?", "response": "Light."}) for number in ("1", "5")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(f.score, f.scale) for f in of_kind(read(path), Rating)] == [(1.0, (1.0, 5.0)), (5.0, (1.0, 5.0))]


def test_argilla_ratings_of_two_answers_by_the_number_at_the_end(tmp_path: Path) -> None:
    row = argilla("rating-1", "4", {"prompt": "Why?", "response-1": "Light.", "response-2": "Air."})
    row["responses"]["rating-2"] = [{"value": 2, "user_id": "u"}]
    result = read_row(tmp_path, row)
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[f.completion_id], f.score) for f in of_kind(result, Rating)] == [("Light.", 4.0), ("Air.", 2.0)]
    assert of_kind(result, Preference) == []


@pytest.mark.parametrize("as_columns", [False, True])
def test_argilla_records_as_version_1_put_them_on_the_hub(tmp_path: Path, as_columns: bool) -> None:
    ranked = [{"text": "response2", "rank": 1}, {"text": "response1", "rank": 2}]
    values: list[Any] = [{"rank": [1, 2], "value": ["response2", "response1"]} if as_columns else ranked]
    order: Any = [{"user_id": "u1", "status": "submitted", "value": value} for value in values]
    if as_columns:
        order = {key: [one[key] for one in order] for key in ("user_id", "value", "status")}
    row = {"prompt": "Why?", "response1": "Light.", "response2": "Air.", "order": order, "order-suggestion": None,
           "order-suggestion-metadata": {"type": None}, "external_id": None, "metadata": "{}"}  # fmt: skip
    result = read_row(tmp_path, row)
    assert winners(result) == [("b", "Light.", "Air.")]
    assert result.notes == {}
